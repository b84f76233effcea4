"""A linear head read in tiles of its vocabulary: logits of a tile, and a softmax whose columns arrive one by one.

Axes: N positions, D hidden units, V tokens, C columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Projection:
    """Hidden states and the linear head that turns them into logits."""

    hidden: Tensor  # [N, D]; products are computed in its dtype
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]

    def weight_of(self, tokens: slice | Tensor) -> Tensor:
        return self.weight[tokens].to(self.hidden.dtype)

    def logits(self, columns: slice) -> Tensor:
        """[N, C], rounded to the dtype of the product first, as a call of the head would do."""
        bias = None if self.bias is None else self.bias[columns].to(self.hidden.dtype)
        return full(F.linear(self.hidden, self.weight_of(columns), bias))

    def logit_of(self, ids: Tensor) -> Tensor:
        """[N], one token per position; not rounded, so only near what `logits` gives."""
        logit = (full(self.hidden) * full(self.weight_of(ids))).sum(-1)
        return logit if self.bias is None else logit + full(self.bias[ids])


class RunningSoftmax:
    """A softmax whose columns arrive in tiles; every sum is relative to the largest logit seen so far."""

    def __init__(self, zeros: Tensor) -> None:
        self.largest = torch.full_like(zeros, -torch.inf)
        self.total = zeros  # Σ exp(z − largest)

    def absorb(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights exp(z − largest) of the tile [N, C], and the factor [N] that earlier sums shrink by."""
        largest = torch.maximum(self.largest, logits.amax(-1))
        decay = (self.largest - largest).exp()
        weights = (logits - largest[:, None]).exp_()
        self.largest, self.total = largest, self.total * decay + weights.sum(-1)
        return weights, decay

    def log_total(self) -> Tensor:
        """lse(z) of the columns so far, [N]."""
        return self.largest + self.total.log()


class RunningPull:
    """Σ_{v≠a} w_v (W_a − W_v) of running softmax weights w, which moves the hidden state towards the chosen token a.

    The term of a is 0 and left out: where a has nearly all weight, the rest would drown in the rounding of bfloat16
    products.
    """

    def __init__(self, chosen_weight: Tensor) -> None:
        self.chosen_weight = chosen_weight  # [N, D] W_a
        self.mass = chosen_weight.new_zeros(len(chosen_weight))  # Σ_{v≠a} w_v
        self.pull = torch.zeros_like(chosen_weight)  # Σ_{v≠a} w_v W_v

    def absorb(self, others: Tensor, weight: Tensor, decay: Tensor) -> None:
        """`others` [N, C] are the weights of a tile, 0 at a; `weight` [C, D] its rows of W."""
        self.mass = self.mass * decay + others.sum(-1)
        self.pull.mul_(decay[:, None]).add_(others.to(weight.dtype) @ weight)

    def mean(self, total: Tensor) -> Tensor:
        """[N, D], the sum divided by `total` [N]."""
        return (self.mass[:, None] * self.chosen_weight - self.pull).div_(total[:, None])


def tiles(n_vocabulary: int, n_columns: int) -> Iterator[slice]:
    """The columns of each tile; the last one may be narrower."""
    return (slice(start, min(start + n_columns, n_vocabulary)) for start in range(0, n_vocabulary, n_columns))


def locate(chosen: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Whether the chosen token of each position lies in the tile [N], and its column there, any one if it does not."""
    is_inside = (chosen >= columns.start) & (chosen < columns.stop)
    return is_inside, (chosen - columns.start).clamp(0, columns.stop - columns.start - 1)


def pick(tile: Tensor, is_inside: Tensor, column: Tensor) -> Tensor:
    """The entry of each position at its column [N], 0 where the chosen token lies in another tile."""
    return torch.where(is_inside, tile.gather(-1, column[:, None]).squeeze(-1), 0)


def add_at(tile: Tensor, column: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` [N] to the entry of each position at its column, in place."""
    return tile.scatter_add_(-1, column[:, None], amount[:, None])


def full_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums: float32, or float64 where the products are."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def full(x: Tensor) -> Tensor:
    return x.to(full_dtype(x))
