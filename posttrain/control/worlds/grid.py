"""Moves on an n x n grid of cells with C channels of bits each: channel c of cell i is bit i·C + c."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

STAY, UP, LEFT, DOWN, RIGHT = range(5)
N_MOVES = 5
OFFSETS = torch.tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]])  # row and column of each move


def cells(observation: Tensor, n_channels: int) -> Tensor:
    """[..., n_cells, n_channels] view of [..., n_bits]."""
    return observation.unflatten(-1, (-1, n_channels))


def moved(position: Tensor, action: Tensor, n: int) -> Tensor:
    """[...] int64 cell reached from cell `position` on an n x n grid; the border stops a move."""
    offset = OFFSETS[action]
    row = (position // n + offset[..., 0]).clamp(0, n - 1)
    column = (position % n + offset[..., 1]).clamp(0, n - 1)
    return row * n + column


def at(position: Tensor, n_cells: int) -> Tensor:
    """[..., n_cells] float32, 1 at `position`."""
    return one_hot(position, n_cells).float()


def random_position(keys: Tensor, is_allowed: Tensor) -> Tensor:
    """[...] int64 uniform over the cells allowed [..., n_cells] bool, by the largest of the uniform `keys` there."""
    return torch.where(is_allowed, keys, -1.0).argmax(-1)
