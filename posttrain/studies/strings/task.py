"""Strings of k digits; the verifier passes those whose digits have a given sum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

N_DIGITS = 10  # of the alphabet
MOST_DIGITS = 5  # of a string: 100,000 strings are still enumerated at every evaluation


@dataclass(frozen=True, slots=True)
class SumTask:
    """R(x) = 1 where the digits of x add up to `target_sum`, and `floor` elsewhere."""

    n_digits: int
    target_sum: int
    floor: float  # above 0: log R is the reward of flows and of the soft Bellman equation

    def __post_init__(self) -> None:
        if not 1 <= self.n_digits <= MOST_DIGITS:
            raise ValueError(f"n_digits is {self.n_digits}, needs 1 to {MOST_DIGITS}: all strings are enumerated")
        if not 0 < self.floor < 1:
            raise ValueError(f"floor is {self.floor}: log R needs it above 0, and solutions need it below 1; try 1e-3")
        if not 0 <= self.target_sum <= 9 * self.n_digits:
            raise ValueError(
                f"target_sum is {self.target_sum}: {self.n_digits} digits add up to 0 to {9 * self.n_digits}"
            )

    def strings(self) -> Tensor:
        """[10^k, k] all strings, in the order of the numbers that they spell."""
        return torch.cartesian_prod(*[torch.arange(N_DIGITS)] * self.n_digits).view(-1, self.n_digits)

    def place(self, strings: Tensor) -> Tensor:
        """[B] where each string stands in `strings()`."""
        weight = N_DIGITS ** torch.arange(self.n_digits - 1, -1, -1)
        return (strings * weight).sum(-1)

    def is_solved(self, strings: Tensor) -> Tensor:
        """[B] bool, what the verifier says."""
        return strings.sum(-1) == self.target_sum

    def reward(self, strings: Tensor) -> Tensor:
        """[B] R, float64."""
        return torch.where(self.is_solved(strings), 1.0, torch.tensor(self.floor, dtype=torch.float64))

    def target(self) -> Tensor:
        """[10^k] R / Z: what trajectory balance samples, and with a uniform reference OREO's π_ref exp(log R) / Z'."""
        reward = self.reward(self.strings())
        return reward / reward.sum()

    def optimum(self) -> tuple[Tensor, Tensor]:
        """[10^k, k] log π*(d_t | d_<t) and V*(d_<t) along every string, for a uniform reference and β = 1.

        V*(prefix) = log of the mean of R over its completions; π* = π_ref exp(V* of the longer prefix − V*).
        """
        reward = self.reward(self.strings()).view([N_DIGITS] * self.n_digits)
        means = [reward.mean(dim=tuple(range(t, self.n_digits))) for t in range(self.n_digits)]
        below = [N_DIGITS ** (self.n_digits - t) for t in range(self.n_digits)]  # strings under a prefix of t digits
        along = [mean.log().reshape(-1).repeat_interleave(n) for mean, n in zip(means, below, strict=True)]
        value = torch.stack(along, dim=-1)
        after = torch.cat((value[:, 1:], reward.log().view(-1, 1)), dim=-1)
        return after - value - math.log(N_DIGITS), value
