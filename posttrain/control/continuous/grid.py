"""A grid world whose values are known: 8 x 8 cells, four moves, three rewards of different kinds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))


class GridReward(StrEnum):
    COST = "cost"  # −1 for each move until the goal ends the task
    DISTANCE = "distance"  # 1 − distance to the goal in the cell reached, the farthest cell at 0; it never ends
    GOAL = "goal"  # 1 for the move that reaches the goal, which ends the task


@dataclass(frozen=True, slots=True)
class GridWorld:
    """All S · A pairs of state and action at once, pair = A · state + action. A move into a wall leaves the state."""

    n_states: int
    next_state: Tensor  # [S·A] int64
    reward: Tensor  # [S·A] float64
    is_terminal: Tensor  # [S·A] bool, the move ends the task
    is_start: Tensor  # [S·A] bool, False in a state in which the task has ended

    @property
    def n_actions(self) -> int:
        return len(MOVES)

    def pair_features(self) -> Tensor:
        """[S·A, S + A] float32, the state and the action, each one-hot."""
        state = torch.arange(self.n_states).repeat_interleave(self.n_actions)
        action = torch.arange(self.n_actions).repeat(self.n_states)
        return torch.cat((torch.eye(self.n_states)[state], torch.eye(self.n_actions)[action]), dim=-1)

    def optimal_q(self, *, discount: float, tolerance: float = 1e-12) -> Tensor:
        """[S·A] Q*, float64, by value iteration to changes of at most `tolerance`."""
        q = torch.zeros_like(self.reward)
        while True:
            best = q.view(self.n_states, self.n_actions).amax(-1)[self.next_state]
            updated = self.reward + discount * torch.where(self.is_terminal, 0.0, best)
            if (updated - q).abs().max() <= tolerance:
                return updated
            q = updated


def grid_world(kind: GridReward, *, size: int = 8) -> GridWorld:
    """The grid with its goal in the last corner."""
    place = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), dim=-1).view(-1, 1, 2)
    reached = (place + torch.tensor(MOVES)).clamp(0, size - 1).view(-1, 2)
    next_state = reached[:, 0] * size + reached[:, 1]
    goal = size * size - 1
    is_goal = next_state == goal
    distance = 1 - reached.sum(-1).double() / (2 * (size - 1))  # from 1 in the first cell to 0 at the goal
    reward = {
        GridReward.COST: torch.full((len(next_state),), -1.0, dtype=torch.float64),
        GridReward.DISTANCE: 1 - distance,
        GridReward.GOAL: is_goal.double(),
    }[kind]
    is_ending = kind is not GridReward.DISTANCE
    at_goal = torch.arange(size * size).repeat_interleave(len(MOVES)) == goal
    return GridWorld(size * size, next_state, reward, is_goal & is_ending, ~(at_goal & is_ending))
