"""ProcMaze (arXiv 2211.02222): a new maze in every episode."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from posttrain.control.worlds import grid
from posttrain.control.worlds.streams import Streams

PLAYER, GOAL, WALL, EMPTY, N_CHANNELS = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class ProcMaze:
    """Each step costs 1; acting on the goal ends the episode; walls stop a move. A step may end on the goal by chance.

    So the best return from a distance of d moves is −(d + 1). The chance `p_event` is by default 0.1 over the largest
    number of cells that a maze of this side can have.
    """

    n: int = 4
    p_event: float | None = None

    @property
    def n_bits(self) -> int:
        return self.n**2 * N_CHANNELS

    @property
    def n_actions(self) -> int:
        return grid.N_MOVES

    @property
    def p_chance(self) -> float:
        n_cells = (self.n + 1) * math.ceil(self.n / 2) - self.n % 2
        return 0.1 / n_cells if self.p_event is None else self.p_event

    def without_chance(self) -> ProcMaze:
        return replace(self, p_event=0.0)

    def reset(self, streams: Streams, n: int) -> Tensor:
        """Player and goal stand on open cells, each drawn apart: they may be the same."""
        is_open = self.carve(streams, n)
        keys = streams.uniform(2, n, self.n**2)
        player, goal = (grid.random_position(keys[:, i], is_open) for i in (PLAYER, GOAL))
        standing = torch.stack((grid.at(player, self.n**2), grid.at(goal, self.n**2)), -1)
        ground = torch.stack((~is_open, is_open), -1).float()
        return torch.cat((standing, ground), -1).flatten(-2)

    def reward(self, observation: Tensor) -> Tensor:
        return torch.full(observation.shape[:-1], -1.0)

    def is_terminal(self, observation: Tensor) -> Tensor:
        seen = grid.cells(observation, N_CHANNELS)
        return (seen[..., PLAYER] * seen[..., GOAL]).sum(-1) > 0

    def move(self, observation: Tensor, action: Tensor, streams: Streams) -> Tensor:
        seen = grid.cells(observation, N_CHANNELS)
        position = seen[..., PLAYER].argmax(-1)
        target = grid.moved(position, action, self.n)
        is_wall = seen[..., WALL].gather(-1, target[..., None]).squeeze(-1) > 0
        after = torch.where(is_wall, position, target)
        is_event = streams.uniform(observation.shape[1]) < self.p_chance
        after = torch.where(is_event, seen[..., GOAL].argmax(-1), after)
        return torch.cat((grid.at(after, self.n**2)[..., None], seen[..., GOAL:]), -1).flatten(-2)

    def carve(self, streams: Streams, n: int) -> Tensor:
        """[S, n, n_cells] bool: the open cells of n mazes without loops, by a randomised depth-first walk.

        From the cell on top of the stack the walk goes to a random closed neighbour that touches no other open cell,
        and back where there is none.
        """
        n_seeds, n_cells = len(streams), self.n**2
        start = streams.integers(n_cells, n)
        is_open = grid.at(start, n_cells) > 0
        stack = torch.zeros(n_seeds, n, n_cells, dtype=torch.int64)
        stack[..., 0] = start
        depth = torch.ones(n_seeds, n, dtype=torch.int64)
        # A cell is entered once and left for good once. All keys are drawn now: a seed's numbers must not depend on
        # how long the mazes of others take.
        keys = streams.uniform(2 * n_cells, n, n_cells)
        for turn in range(2 * n_cells):
            if not bool((depth > 0).any()):
                break
            top = stack.gather(-1, (depth - 1).clamp_min(0)[..., None]).squeeze(-1)
            touches_one = is_open.float() @ self._is_neighbour.float() == 1
            choice = self._is_neighbour[top] & ~is_open & touches_one & (depth > 0)[..., None]
            cell = grid.random_position(keys[:, turn], choice)
            can_go = choice.any(-1)
            is_open |= (grid.at(cell, n_cells) > 0) & can_go[..., None]
            is_pushed = (grid.at(depth.clamp_max(n_cells - 1), n_cells) > 0) & can_go[..., None]
            stack = torch.where(is_pushed, cell[..., None], stack)
            depth = torch.where(can_go, depth + 1, (depth - 1).clamp_min(0))
        return is_open

    @cached_property
    def _is_neighbour(self) -> Tensor:
        """[n_cells, n_cells] bool."""
        cell = torch.arange(self.n**2)
        row, column = cell // self.n, cell % self.n
        return (row[:, None] - row).abs() + (column[:, None] - column).abs() == 1
