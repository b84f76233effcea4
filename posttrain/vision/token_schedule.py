"""Which visual tokens a noise level may see (the schedule kappa of Selftok), and the order in which they are written.

Time is code time: t = 1 is pure noise, t = 0 is the image (the Selftok paper's u is 1 − t). Tokens have an INDEX, 0 to
K − 1. At time t the decoder sees the indexes 0 to kappa(t): index 0, the fine end, is always seen, and index K − 1,
the coarse end, at the noisiest times only. A language model writes the coarse end first, so AR ORDER is the reversed
index order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise

import torch
from torch import Tensor

_ROUNDING = 1e-9
FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class TokenOrder(StrEnum):
    """How AR order lies to index order. Both ways are the same map, since a flip undoes itself."""

    REVERSED = "reversed"  # of tokens with a schedule: coarse first
    RASTER = "raster"  # of spatial tokens: row by row, as indexed

    def to_ar(self, indexed: Tensor) -> Tensor:
        """Tokens (or a mask) [..., K] in index order, put in AR order."""
        return indexed.flip(-1) if self is TokenOrder.REVERSED else indexed

    def from_ar(self, written: Tensor) -> Tensor:
        """Tokens (or a mask) [..., K] in AR order, put in index order."""
        return self.to_ar(written)


@dataclass(frozen=True, slots=True)
class TokenSchedule:
    """kappa(t), piecewise linear: stage s reveals `k_per_stage[s]` more indexes from boundaries[s] to boundaries[s+1].

        kappa(t) = min(K − 1, n_always + sum_{r<s} k_r + floor((t − lo_s) k_s / (hi_s − lo_s)))

    so `n_always` = 0 still shows index 0 at t = 0, as Selftok's code does.
    """

    boundaries: tuple[float, ...]  # [stages + 1], 0 to 1
    k_per_stage: tuple[int, ...]  # [stages]
    n_always: int = 0  # indexes that the schedule does not hide at any time, beside index 0

    def __post_init__(self) -> None:
        if len(self.boundaries) != len(self.k_per_stage) + 1 or self.boundaries[0] != 0 or self.boundaries[-1] != 1:
            raise ValueError(
                f"boundaries {self.boundaries} of {len(self.k_per_stage)} stages: one more than stages, from 0 to 1"
            )
        if any(lo >= hi for lo, hi in pairwise(self.boundaries)) or min(*self.k_per_stage, 0) < 0 or self.n_tokens < 1:
            raise ValueError(
                f"boundaries {self.boundaries} rise? k_per_stage {self.k_per_stage} at least 0, and not all 0?"
            )

    @property
    def n_tokens(self) -> int:
        return self.n_always + sum(self.k_per_stage)

    def kappa(self, t: Tensor) -> Tensor:
        """[...] int64, the last visible index at times t [...] in [0, 1]."""
        time = t.double()
        edges = torch.tensor(self.boundaries, dtype=torch.float64, device=t.device)
        stage = torch.bucketize(time, edges[1:-1], right=True)
        counts = torch.tensor(self.k_per_stage, dtype=torch.float64, device=t.device)
        before = torch.tensor((0, *accumulate(self.k_per_stage[:-1])), device=t.device)
        lo, hi = edges[:-1][stage], edges[1:][stage]
        # A time such as 0.175, which binary fractions miss, may not fall below the whole number that it stands for.
        within = ((time - lo) * counts[stage] / (hi - lo) + _ROUNDING).floor().long()
        return (self.n_always + before[stage] + within).clamp(max=self.n_tokens - 1)

    def is_visible(self, t: Tensor) -> Tensor:
        """[..., K] bool in index order: which tokens the decoder may see at times t [...]."""
        return torch.arange(self.n_tokens, device=t.device) <= self.kappa(t).unsqueeze(-1)


def selftok_schedule(n_tokens: int) -> TokenSchedule:
    """The table of the Selftok paper, 192, 184, 72, 48, 16 of 512 tokens, in proportion for another K."""
    return TokenSchedule(FIFTHS, apportion(n_tokens, (192, 184, 72, 48, 16)))


def uniform_schedule(n_tokens: int) -> TokenSchedule:
    """kappa(t) = floor(t K), at most K − 1."""
    return TokenSchedule((0.0, 1.0), (n_tokens,))


def all_visible(n_tokens: int) -> TokenSchedule:
    """No schedule: every token at every time, as in FlowMo."""
    return TokenSchedule((0.0, 1.0), (0,), n_always=n_tokens)


def information_schedule(n_tokens: int, *, gain: float, max_bits: float, shift: float) -> TokenSchedule:
    """Tokens in proportion to the bits about the image that noise takes away in each fifth of the time.

    At noise level a the image, x_a = a eps + (1 − a) x, is a channel of signal-to-noise ratio ((1 − a) / a)². Of a
    part whose detection gathers the power `gain` (the sum of squares that sets two contents apart) it tells

        I(a) = min(max_bits, 1/2 log2(1 + gain ((1 − a) / a)²))        bits, a Gaussian channel cut at its entropy

    A stage is given K (I(lo) − I(hi)) / max_bits tokens. `shift` is that of the noise levels (`noise_level`).
    """
    edges = noise_level(torch.tensor(FIFTHS, dtype=torch.float64), shift=shift).tolist()
    bits = [min(max_bits, 0.5 * math.log2(1 + gain * ((1 - a) / a) ** 2)) if a > 0 else max_bits for a in edges]
    return TokenSchedule(FIFTHS, apportion(n_tokens, [before - after for before, after in pairwise(bits)]))


def apportion(n: int, weights: Sequence[float]) -> tuple[int, ...]:
    """`n` dealt out in proportion to `weights`, by largest remainder; it sums to n."""
    exact = [n * weight / sum(weights) for weight in weights]
    shares = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: n - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def noise_level(t: Tensor, *, shift: float) -> Tensor:
    """The noise level a = s t / (1 + (s − 1) t): s > 1 spends more of the time on strong noise. s is `shift`."""
    return shift * t / (1 + (shift - 1) * t)
