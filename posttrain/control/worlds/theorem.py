"""The theorem of arXiv 2211.02222 by enumeration: what a model class adds to the Bellman equation.

Let M be a class of models that holds the true m*, and D the observed pairs (s, a), whose outcomes are known.

    Q_MF(D) = { Q*_m : m ∈ M, and Q*_m satisfies m*'s Bellman optimality equation on D }     values that fit the data
    Q_MB(D) = { Q*_m : m ∈ M, and m agrees with m* on D }                                     values of models that do

Q_MB ⊆ Q_MF: where m agrees with m*, its own Bellman equation is m*'s. For a class in which every pair's outcome is
chosen freely the two are equal: change m to m* on D, and its Q stays a solution. So a model helps only by what it says
of one pair given another.

The domain: states of two bits, two actions, deterministic, reward 1 in state (1, 1), known to all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.losses.paths import path_residual

N_STATES, N_ACTIONS = 4, 2
N_PAIRS = N_STATES * N_ACTIONS
DISCOUNT = 0.9
REWARD = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)  # of a state, whatever the action
TOLERANCE = 1e-8  # on values in [0, 10]
GRAIN = 1e-6  # different optimal values of this domain lie further apart than this
SWEEPS = 240  # 0.9^240 · 10 < 1e-9


def tabular_models() -> Tensor:
    """[65536, 4, 2] int64: every table of next states."""
    digits = [torch.arange(N_STATES)] * N_PAIRS
    return torch.cartesian_prod(*digits).view(-1, N_STATES, N_ACTIONS)


def factored_models() -> Tensor:
    """[256, 4, 2] int64: each bit's next value depends on that bit and the action alone, x_i' = f_i(x_i, a)."""
    functions = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 2, N_ACTIONS)  # [16, bit, action]
    state = torch.arange(N_STATES)
    high, low = functions[:, state // 2], functions[:, state % 2]  # [16, 4, 2] each
    return (2 * high[:, None] + low[None]).flatten(0, 1)


def optimal_values(next_state: Tensor) -> Tensor:
    """[N, 4, 2] float64 Q* of the models next_state [N, 4, 2], by value iteration."""
    q = torch.zeros(next_state.shape, dtype=torch.float64)
    for _ in range(SWEEPS):
        q = REWARD[:, None] + DISCOUNT * _best_at(q, next_state)
    return q


@dataclass(frozen=True)
class SetSizes:
    """How many value functions are left when the pairs of D are known."""

    n_observed: int
    n_model_free: int
    n_model_based: int
    is_subset: bool  # Q_MB ⊆ Q_MF


class ModelClass:
    """A class of models, with the optimal value function of each."""

    def __init__(self, next_state: Tensor) -> None:
        self.next_state = next_state  # [N, 4, 2] int64
        self.values, self.value_of_model = _distinct(optimal_values(next_state))  # [K, 4, 2], [N] indexes into it

    def set_sizes(self, true_model: int, pairs: Tensor) -> list[SetSizes]:
        """For D = the first n of `pairs`, n = 0 … 8, and the model of this index as m*.

        pairs: [8] int64, an order of the pairs s · 2 + a.
        """
        true = self.next_state[true_model]
        is_agreeing = (self.next_state == true).flatten(1)
        is_consistent = (self._bellman_residual(true).abs() < TOLERANCE).flatten(1)
        return [
            self._sizes(is_consistent[:, observed], is_agreeing[:, observed])
            for observed in (pairs[:n] for n in range(N_PAIRS + 1))
        ]

    def _bellman_residual(self, next_state: Tensor) -> Tensor:
        """[K, 4, 2] of every value function of the class, in the equation of one model."""
        return path_residual(self.values, REWARD[:, None], DISCOUNT * _best_at(self.values, next_state))

    def _sizes(self, is_consistent: Tensor, is_agreeing: Tensor) -> SetSizes:
        model_free = is_consistent.all(-1)
        model_based = torch.zeros_like(model_free)
        model_based[self.value_of_model[is_agreeing.all(-1)]] = True
        return SetSizes(
            n_observed=is_consistent.shape[-1],
            n_model_free=int(model_free.sum()),
            n_model_based=int(model_based.sum()),
            is_subset=bool((model_free | ~model_based).all()),
        )


def _best_at(q: Tensor, next_state: Tensor) -> Tensor:
    """[N, 4, 2] max_a Q(s', a) of q [N, 4, 2], at next states [N, 4, 2] or [4, 2]."""
    best = q.max(-1).values  # [N, 4]
    return best.gather(-1, next_state.expand(len(q), -1, -1).flatten(1)).view(q.shape)


def _distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """Value functions that differ by more than rounding, and which of them each of values [N, 4, 2] is."""
    rounded, index = (values / GRAIN).round().flatten(1).unique(dim=0, return_inverse=True)
    representative = torch.empty(len(rounded), dtype=torch.int64)
    representative[index] = torch.arange(len(values))
    return values[representative], index
