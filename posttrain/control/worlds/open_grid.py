"""OpenGrid (arXiv 2211.02222): an empty grid with the goal in a corner, the world without combinatorics."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posttrain.control.worlds import grid
from posttrain.control.worlds.streams import Streams

PLAYER, GOAL, N_CHANNELS = 0, 1, 2


@dataclass(frozen=True)
class OpenGrid:
    """Each step costs 1; acting on the goal, the last cell, ends the episode. A step may end there by chance.

    The chance `p_event` is by default 0.1/n. The channels of the observation are our choice.
    """

    n: int = 10
    p_event: float | None = None

    @property
    def n_bits(self) -> int:
        return self.n**2 * N_CHANNELS

    @property
    def n_actions(self) -> int:
        return grid.N_MOVES

    @property
    def p_chance(self) -> float:
        return 0.1 / self.n if self.p_event is None else self.p_event

    def without_chance(self) -> OpenGrid:
        return replace(self, p_event=0.0)

    def reset(self, streams: Streams, n: int) -> Tensor:
        return self._observation(streams.integers(self.n**2, n))

    def reward(self, observation: Tensor) -> Tensor:
        return torch.full(observation.shape[:-1], -1.0)

    def is_terminal(self, observation: Tensor) -> Tensor:
        return (grid.cells(observation, N_CHANNELS)[..., -1, PLAYER] > 0).clone()

    def move(self, observation: Tensor, action: Tensor, streams: Streams) -> Tensor:
        position = grid.cells(observation, N_CHANNELS)[..., PLAYER].argmax(-1)
        after = grid.moved(position, action, self.n)
        is_event = streams.uniform(observation.shape[1]) < self.p_chance
        return self._observation(torch.where(is_event, self.n**2 - 1, after))

    def _observation(self, position: Tensor) -> Tensor:
        player = grid.at(position, self.n**2)
        goal = grid.at(torch.full_like(position, self.n**2 - 1), self.n**2)
        return torch.stack((player, goal), -1).flatten(-2)
