"""Temporal differences: the residual of one transition, squared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.losses.paths import path_residual
from posttrain.losses.term import Term


@dataclass(frozen=True, slots=True)
class TransitionValues:
    """N transitions (s, a) → r, s'. All fields are [N]."""

    q: Tensor  # Q(s, a)
    reward: Tensor
    discount: Tensor  # γ times the chance that the episode goes on: 0 after a terminal transition
    next_q: Tensor  # the value of s' that q is drawn to: max_a Q(s', a) of DQN, Q(s', π(s')) of DDPG
    weight: Tensor  # what the transition counts; 0 leaves it out. The unit's count is the sum of these

    def __post_init__(self) -> None:
        for name in ("reward", "discount", "next_q", "weight"):
            shape = getattr(self, name).shape
            if shape != self.q.shape or self.q.dim() != 1:
                raise ValueError(
                    f"{name} is {tuple(shape)}, q is {tuple(self.q.shape)}: needed one number per transition, [N]; "
                    "shapes such as [N, 1] would broadcast"
                )

    def residual(self) -> Tensor:
        """[N] Q(s, a) − (r + discount · Q'); nothing is detached."""
        return path_residual(self.q, self.reward, self.discount * self.next_q)


def td_squared(values: TransitionValues) -> tuple[Term, ...]:
    """weight · (Q(s, a) − [r + discount · Q'])² with the semi-gradient: the target in brackets is held fixed."""
    target = (values.reward + values.discount * values.next_q).detach()
    residual = path_residual(values.q, target)
    return (Term("td", _weighted(values, residual.square()), "transition"),)


def _weighted(values: TransitionValues, loss: Tensor) -> Tensor:
    return torch.where(values.weight > 0, values.weight * loss, 0.0)
