"""How an answer is decoded, as a user writes it: `greedy`, `sample:16` or `beam:4x4`."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Greedy:
    """The most likely token at every step; one answer."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """n whole answers. They also give best-of-m and majority for every m = 1, 2, 4, ... up to n."""

    n: int


@dataclass(frozen=True, slots=True)
class Beam:
    """Step-level beam search by value: `width` partial solutions, `expansions` continuations of each."""

    width: int
    expansions: int


Decoding = Greedy | Sampled | Beam


def parse_decoding(text: str) -> Decoding:
    """`greedy`, `sample:N` or `beam:WxE`; raises ValueError naming the forms."""
    if text == "greedy":
        return Greedy()
    if (match := re.fullmatch(r"sample:([1-9]\d*)", text, re.ASCII)) is not None:
        return Sampled(int(match[1]))
    if (match := re.fullmatch(r"beam:([1-9]\d*)x([1-9]\d*)", text, re.ASCII)) is not None:
        return Beam(int(match[1]), int(match[2]))
    raise ValueError(f"decoding '{text}' is none of: greedy, sample:N (e.g. sample:16), beam:WxE (e.g. beam:4x4)")
