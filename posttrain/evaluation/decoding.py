"""How an answer is decoded, as a user writes it: `greedy`, `sample:16`, `beam:4x4`, `likelihood:5`, `log_ratio:5`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Greedy:
    """The most likely token at every step; one answer."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """n whole answers. They also give best-of-m and majority for every power of two m = 2, 4, ... up to n."""

    n: int

    def prefix_sizes(self) -> tuple[int, ...]:
        """The m = 2, 4, 8, ... <= n of which the first m samples are judged together."""
        return tuple(2**k for k in range(1, self.n.bit_length()))


@dataclass(frozen=True, slots=True)
class Beam:
    """Step-level beam search by value: `width` partial solutions, `expansions` continuations of each."""

    width: int
    expansions: int


@dataclass(frozen=True, slots=True)
class LikelihoodBeam:
    """Token-level beam search for the largest Σ log π, with `width` open paths."""

    width: int


@dataclass(frozen=True, slots=True)
class LogRatioBeam:
    """Token-level beam search for the largest Σ log π/π_ref, with `width` open paths."""

    width: int


Decoding = Greedy | Sampled | Beam | LikelihoodBeam | LogRatioBeam
FORMS = "greedy, sample:N (e.g. sample:16), beam:WxE (e.g. beam:4x4), likelihood:B or log_ratio:B (e.g. log_ratio:5)"


def parse_decoding(text: str) -> Decoding:
    """One of FORMS; raises ValueError naming them."""
    if text == "greedy":
        return Greedy()
    if (match := re.fullmatch(r"sample:([1-9]\d*)", text, re.ASCII)) is not None:
        return Sampled(int(match[1]))
    if (match := re.fullmatch(r"beam:([1-9]\d*)x([1-9]\d*)", text, re.ASCII)) is not None:
        return Beam(int(match[1]), int(match[2]))
    if (match := re.fullmatch(r"likelihood:([1-9]\d*)", text, re.ASCII)) is not None:
        return LikelihoodBeam(int(match[1]))
    if (match := re.fullmatch(r"log_ratio:([1-9]\d*)", text, re.ASCII)) is not None:
        return LogRatioBeam(int(match[1]))
    raise ValueError(f"decoding '{text}' is none of: {FORMS}")


def require_distinct_records(texts: Sequence[str]) -> None:
    """Raises ValueError when two of the decodings would write records of one method and budget."""
    seen: dict[tuple[str, int], str] = {}
    for text in texts:
        for key in (key[:2] for key in methods_of(parse_decoding(text), has_value=False)):
            if key in seen:
                raise ValueError(
                    f"decodings '{seen[key]}' and '{text}' both give '{key[0]}' answers with a budget of {key[1]}, "
                    "which could not be told apart: leave one out, or write it under another name"
                )
            seen[key] = text


def methods_of(decoding: Decoding, *, has_value: bool) -> tuple[tuple[str, int, int], ...]:
    """Method, budget and number of the records that a decoding gives per problem, with or without a value model."""
    match decoding:
        case Greedy():
            return (("greedy", 1, 1),)
        case Sampled():
            chosen = ("majority", "best_of_n") if has_value else ("majority",)
            return (("sample", 1, decoding.n), *((how, m, 1) for m in decoding.prefix_sizes() for how in chosen))
        case Beam(width, expansions):
            return (("beam", width * expansions, 1),)
        case LikelihoodBeam(width):
            return (("likelihood", width, 1),)
        case LogRatioBeam(width):
            return (("log_ratio", width, 1),)
