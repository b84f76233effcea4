"""How an answer is decoded, as a user writes it: `greedy`, `sample:16`, `majority:16`, `beam:4x4`, `likelihood:5`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.search.spec import Algorithm


@dataclass(frozen=True, slots=True)
class Greedy:
    """The most likely token at every step; one answer."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """n whole answers, each a record. They also give what `Chosen` gives for m = 2, 4, 8, ... up to n."""

    n: int

    def prefix_sizes(self) -> tuple[int, ...]:
        """The m = 2, 4, 8, ... <= n of which the first m samples are judged together."""
        return tuple(2**k for k in range(1, self.n.bit_length()))


@dataclass(frozen=True, slots=True)
class Chosen:
    """One of n whole answers: the best by value, or the first of those that a vote elects."""

    algorithm: Algorithm
    n: int


@dataclass(frozen=True, slots=True)
class Stepwise:
    """Step-level search by value: `width` partial solutions, `expansions` continuations of each."""

    algorithm: Algorithm
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


@dataclass(frozen=True, slots=True)
class ValueRerank:
    """Token-level beam search over the policy's `top_k` tokens, ranked by value, with `width` open paths."""

    width: int
    top_k: int


Searched = Chosen | Stepwise | LikelihoodBeam | LogRatioBeam | ValueRerank
Decoding = Greedy | Sampled | Searched
FORMS = (
    "greedy, sample:N (e.g. sample:16), best_of_n:N, majority:N or weighted_majority:N, beam:WxE or dvts:WxE "
    "(e.g. beam:4x4), likelihood:B or log_ratio:B (e.g. log_ratio:5), value_rerank:BxK"
)


def parse_decoding(text: str) -> Decoding:
    """One of FORMS; raises ValueError naming them."""
    if text == "greedy":
        return Greedy()
    match = re.fullmatch(r"([a-z_]+):([1-9]\d*)(?:x([1-9]\d*))?", text, re.ASCII)
    if match is None:
        raise ValueError(f"decoding '{text}' is none of: {FORMS}")
    match match[1], int(match[2]), int(match[3] or 0):
        case "sample", n, 0:
            return Sampled(n)
        case ("best_of_n" | "majority" | "weighted_majority") as name, n, 0:
            return Chosen(Algorithm(name), n)
        case ("beam" | "dvts") as name, width, expansions if expansions:
            return Stepwise(Algorithm(name), width, expansions)
        case "likelihood", width, 0:
            return LikelihoodBeam(width)
        case "log_ratio", width, 0:
            return LogRatioBeam(width)
        case "value_rerank", width, top_k if top_k:
            return ValueRerank(width, top_k)
    raise ValueError(f"decoding '{text}' is none of: {FORMS}")


def require_distinct_records(texts: Sequence[str]) -> None:
    """Raises ValueError when two of the decodings would write records of one method and budget."""
    seen: dict[tuple[str, int], str] = {}
    for text in texts:
        for key in (key[:2] for key in methods_of(parse_decoding(text), has_value=True)):
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
            chosen = ("majority", "weighted_majority", "best_of_n") if has_value else ("majority",)
            return (("sample", 1, decoding.n), *((how, m, 1) for m in decoding.prefix_sizes() for how in chosen))
        case Chosen(algorithm, n):
            return ((algorithm.value, n, 1),)
        case Stepwise(algorithm, width, expansions):
            return ((algorithm.value, width * expansions, 1),)
        case LikelihoodBeam(width):
            return (("likelihood", width, 1),)
        case LogRatioBeam(width):
            return (("log_ratio", width, 1),)
        case ValueRerank(width):
            return (("value_rerank", width, 1),)


def asks_values(decoding: Decoding, *, value_weight: float) -> bool:
    """Whether the decoding cannot go without a value model."""
    match decoding:
        case Chosen(Algorithm.MAJORITY):
            return False
        case Chosen(Algorithm.BEST_OF_N) | Stepwise():
            return value_weight > 0
        case Chosen(Algorithm.WEIGHTED_MAJORITY) | ValueRerank():
            return True
        case _:
            return False
