"""What the server asks of whatever runs the networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from posttrain.sampling import Sample, SamplingParams, TokenListener
from posttrain.search.scorer import Scored


@dataclass(frozen=True, slots=True)
class BackendStats:
    """Counts since the start, but for the two that name a present."""

    n_running: int  # sequences that are being sampled now
    n_waiting: int  # sequences that wait for a free row now
    n_generated_tokens: int
    n_value_tokens_read: int
    n_value_tokens_cached: int  # tokens of scored sequences that did not have to be read again


class Backend(Protocol):
    """A policy, and perhaps a value model, for many tasks of one event loop at once.

    No call waits for another to end: sequences of all callers are sampled side by side, a token of each at a time.
    """

    tokenizer: PreTrainedTokenizerBase
    policy_name: str
    value_name: str | None  # None: no value model, so no search by value
    n_positions: int  # most tokens of a prompt and its completion together

    async def sample(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        n: int,
        stream: int,
        on_token: TokenListener | None = None,
        n_top: int = 0,
    ) -> list[Sample]:
        """n continuations, drawn as SamplingEngine.sample draws them, with the `n_top` likeliest tokens at each place.

        `on_token` is called on the event loop. Cancelling the task that waits frees the rows before their next token.
        Raises ValueError for a prompt that is empty or leaves no position free.
        """
        ...

    async def score(self, sequences: Sequence[Sequence[int]]) -> Scored:
        """V of each sequence at its last token. Raises ValueError without a value model.

        What is read in one batch for several calls counts for one of them, so that all calls add up to `stats`.
        """
        ...

    async def score_all(self, sequence: Sequence[int]) -> Scored:
        """V at every token of one sequence."""
        ...

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        """A hint that nothing will go on from these prefixes: what is cached for them alone may be freed."""
        ...

    def stats(self) -> BackendStats: ...

    @property
    def is_alive(self) -> bool:
        """False once what runs the networks has ended and no call can succeed any more: only a restart helps."""
        ...

    async def close(self) -> None:
        """Give the networks' memory and threads back; calls in flight are cancelled."""
        ...
