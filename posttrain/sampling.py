"""What the rest of the library asks of a sampling engine; the two engines differ in nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from posttrain.schema import FinishReason

MIN_TEMPERATURE = 0.001  # above greedy; logits over less are no numbers any more

TopTokens = tuple[tuple[int, float], ...]  # (token id, log π) of the likeliest tokens at one place, likeliest first
# (place among the n, token id, log π, the likeliest tokens there if they were asked for), as soon as it is sampled
TokenListener = Callable[[int, int, float, TopTokens], None]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to continue a prompt. Temperature 0 is greedy; the policy is never re-scaled silently."""

    max_new_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0
    top_k: int = 0  # 0: the whole vocabulary
    stop: tuple[str, ...] = ()  # end after the token that completes one of these; its tokens are kept

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, needs at least 1")
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}, needs 0 (greedy) or a finite number of {MIN_TEMPERATURE} or more"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}, needs an unsigned 64-bit number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, needs a number in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, needs 0 (the whole vocabulary) or more")
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError(f"stop is {self.stop!r}, needs a tuple of non-empty strings")


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation, as sampled."""

    token_ids: tuple[int, ...]  # without the prompt; EOS and delimiter tokens included
    logp: tuple[float, ...]  # log π(a|s) at temperature 1 over the whole vocabulary, nats, one per token
    finish_reason: FinishReason
    stop_string: str | None  # the delimiter that ended it; None when EOS or the length did
    top: tuple[TopTokens, ...] = ()  # at each token's place; empty where nobody asked for them


class SamplingEngine(Protocol):
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        n: int,
        *,
        streams: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """n continuations of each prompt, in order; the same seed gives the same samples on one engine and machine.

        Every continuation draws from a random stream of its own, chosen by (params.seed, stream of its prompt, its
        place among the n). The stream of a prompt is its place in `prompts`, or the 64-bit number that `streams` gives
        it: a caller that splits its prompts over several calls names them there, and gets the same samples.
        """
        ...


def prompt_streams(prompts: Sequence[Sequence[int]], streams: Sequence[int] | None) -> Sequence[int]:
    """The stream of each prompt: as given, or its place in `prompts`. Raises ValueError unless each has one."""
    streams = range(len(prompts)) if streams is None else streams
    if len(streams) != len(prompts):
        raise ValueError(f"{len(streams)} streams for {len(prompts)} prompts: give one to each, or none at all")
    return streams
