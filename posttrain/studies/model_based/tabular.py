"""What experience replay comes to without any generalisation: a table, solved on the transitions that were seen."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.control.worlds.transitions import Transitions

SWEEPS = 300  # 0.9^300 is 2e-14


class TabularQ:
    """The fixed point of tabular Q-learning on one seed's transitions; pairs that were never seen stay at 0.

    Rewards and next states of a pair are averaged over its occurrences, so this is also the value of the empirical
    model: for a table, replay and a model are one (see `posttrain.control.worlds.theorem`).
    """

    def __init__(self, seen: Transitions, *, n_actions: int, discount: float) -> None:
        """`seen` has rows [N, ...] of one seed."""
        self.n_actions = n_actions
        both = torch.cat((seen.observation, seen.next_observation))
        self.states, index = both.unique(dim=0, return_inverse=True)
        start, after = index.chunk(2)
        pair = start * n_actions + seen.action
        self.q = torch.zeros(len(self.states), n_actions)
        n_seen = torch.zeros(self.q.numel()).index_add_(0, pair, torch.ones(len(pair)))
        goes_on = (~seen.is_terminal).float()
        for _ in range(SWEEPS):
            target = seen.reward + discount * goes_on * self.q.max(-1).values[after]
            mean = torch.zeros(self.q.numel()).index_add_(0, pair, target) / n_seen.clamp_min(1)
            self.q = mean.view(self.q.shape)

    def greedy(self, observation: Tensor, keys: Tensor) -> Tensor:
        """[B] actions of the largest Q for observations [B, n_bits]; the largest of `keys` [B, n_actions] breaks ties.

        All actions tie in a state that was never seen.
        """
        is_same = (observation[:, None] == self.states).all(-1)  # [B, n_states]
        q = torch.where(is_same.any(-1)[:, None], self.q[is_same.float().argmax(-1)], 0.0)
        is_best = q == q.max(-1, keepdim=True).values
        return torch.where(is_best, keys, -1.0).argmax(-1)
