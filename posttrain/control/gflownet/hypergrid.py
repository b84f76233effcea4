"""The hypergrid of arXiv 2106.04399, Section 4.1: cells of {0..H−1}^n, moves that raise one coordinate, 2^n modes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from posttrain.control.gflownet.state_graph import NONE, StateGraph, state_graph

MAX_CELLS = 2_000_000  # tables over all cells, in memory
NO_MODE = -1


class StopRule(StrEnum):
    """When an episode ends. The rules have different sets of objects, so different Z: never compare across them."""

    FORCED = "forced"  # as soon as a coordinate reaches H − 1, or by the stop: the paper's code
    FREE = "free"  # by the stop alone: torchgfn


@dataclass(frozen=True, slots=True)
class Hypergrid:
    graph: StateGraph
    cell: Tensor  # [S, n] int64, the coordinates of each state
    mode: Tensor  # [S] int64, which of the 2^n modes the cell belongs to, NO_MODE elsewhere
    side: int  # H

    @property
    def n_dims(self) -> int:
        return self.cell.shape[1]

    @property
    def n_modes(self) -> int:
        return len(self.mode[self.mode != NO_MODE].unique())

    def one_hot(self) -> Tensor:
        """[S, n · H] float32, the network's input."""
        return torch.nn.functional.one_hot(self.cell, self.side).flatten(1).float()


def hypergrid(*, n_dims: int, side: int, reward_floor: float, stop_rule: StopRule) -> Hypergrid:
    """All states that can be reached; the source is cell (0, ..., 0).

    Raises ValueError for sides below 2, a reward floor that is not positive, and more than MAX_CELLS cells.
    """
    if n_dims < 1 or side < 2:
        raise ValueError(f"n_dims {n_dims} and side {side}: needs n_dims >= 1 and side >= 2, or there is no move")
    if not (reward_floor > 0 and math.isfinite(reward_floor)):
        raise ValueError(
            f"reward_floor is {reward_floor:g}: cells outside the bands have this reward, and its log is a flow; "
            "needed a positive number such as 1e-3"
        )
    if side**n_dims > MAX_CELLS:
        raise ValueError(f"{side}^{n_dims} cells cannot be enumerated: needs at most {MAX_CELLS}; take a smaller side")
    cell = torch.cartesian_prod(*[torch.arange(side)] * n_dims).reshape(-1, n_dims)
    is_full = cell == side - 1
    is_reached = torch.ones(len(cell), dtype=torch.bool)
    can_move = ~is_full
    if stop_rule is StopRule.FORCED:
        is_reached = is_full.sum(-1) <= 1
        can_move = (~is_full.any(-1))[:, None].expand(-1, n_dims)
    number = torch.where(is_reached, is_reached.cumsum(0) - 1, NONE)
    raised = torch.arange(len(cell))[:, None] + side ** torch.arange(n_dims - 1, -1, -1)
    child = torch.where(can_move, number[raised.clamp(max=len(cell) - 1)], NONE)
    cell = cell[is_reached]
    graph, order = state_graph(child[is_reached], grid_reward(cell, side=side, reward_floor=reward_floor))
    return Hypergrid(graph, cell[order], _modes(cell[order], side), side)


def grid_reward(cell: Tensor, *, side: int, reward_floor: float) -> Tensor:
    """[...] float64 R0 + 0.5 · Π 1[u > 0.5] + 2 · Π 1[0.6 < u < 0.8]  with  u_i = |2 x_i/(H − 1) − 1|.

    The paper prints x_i/H; its code has x_i/(H − 1), which is symmetric. The bounds are compared as integers, so a
    cell on one of them is outside whatever floats say.
    """
    in_plateau, in_band = _bands(cell, side)
    return reward_floor + 0.5 * in_plateau.all(-1).double() + 2.0 * in_band.all(-1).double()


def _bands(cell: Tensor, side: int) -> tuple[Tensor, Tensor]:
    scaled = 10 * (2 * cell - (side - 1)).abs()  # 10 u (H − 1)
    return scaled > 5 * (side - 1), (scaled > 6 * (side - 1)) & (scaled < 8 * (side - 1))


def _modes(cell: Tensor, side: int) -> Tensor:
    """The corner of the grid on whose side a cell of the band lies, its bits the coordinates above the middle."""
    _, in_band = _bands(cell, side)
    corner = ((2 * cell > side - 1).long() << torch.arange(cell.shape[-1])).sum(-1)
    return torch.where(in_band.all(-1), corner, NO_MODE)
