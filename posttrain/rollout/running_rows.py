"""The continuations that are sampled side by side, and the key/value cache that they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain.models.cached_rows import CachedRows
from posttrain.models.prefix_cache import PrefixCache
from posttrain.rollout.choose import choose_tokens, logp_of, top_of
from posttrain.rollout.model_thread import answer, open_future
from posttrain.rollout.stop_strings import StopStrings
from posttrain.rollout.transformers_engine import is_worth_compacting
from posttrain.sampling import Sample, SamplingParams, TokenListener, TopTokens
from posttrain.schema import FinishReason


@dataclass(slots=True, eq=False)
class Request:
    """n continuations of one prompt. It is over once its future is done: answered, failed or cancelled."""

    prompt: tuple[int, ...]
    params: SamplingParams
    stream: int
    n_new: int  # token budget of each
    stop: StopStrings | None
    on_token: TokenListener | None
    n_top: int  # likeliest tokens to tell of at every place
    samples: list[Sample | None]  # the n, as they end
    n_admitted: int = 0  # that have, or had, a row
    is_over: bool = False
    future: Future[list[Sample]] = field(default_factory=open_future)

    def __post_init__(self) -> None:
        self.future.add_done_callback(self._end)

    def _end(self, future: Future[list[Sample]]) -> None:
        """Called on whatever thread made the future done."""
        self.is_over = True

    @property
    def n_waiting(self) -> int:
        return len(self.samples) - self.n_admitted


@dataclass(slots=True, eq=False)
class Row:
    """One continuation under way."""

    request: Request
    place: int  # among the n
    uniform: NDArray[np.float64]  # [n_new] the random number of each of its tokens
    token_ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    top: list[TopTokens] = field(default_factory=list)  # of each token's place, if the request asks for it
    has_ended: bool = False  # it may stay in the batch for a while

    def next_uniform(self) -> float:
        return 0.0 if self.has_ended else self.uniform[len(self.token_ids)]

    def take(self, token_id: int, logp: float, top: TopTokens, eos_ids: Collection[int]) -> None:
        """Add a token, tell the listener, and end by EOS, by a stop string that it completes, or by the budget."""
        request = self.request
        self.token_ids.append(token_id)
        self.logp.append(logp)
        if request.n_top:
            self.top.append(top)
        if request.on_token is not None:
            request.on_token(self.place, token_id, logp, top)
        is_stopped, stop_string = token_id in eos_ids, None
        if not is_stopped and request.stop is not None and request.stop.may_end[token_id]:
            stop_string = request.stop.ending(self.token_ids)
            is_stopped = stop_string is not None
        if is_stopped or len(self.token_ids) == request.n_new:
            self._end(FinishReason.STOP if is_stopped else FinishReason.LENGTH, stop_string)

    def _end(self, reason: FinishReason, stop_string: str | None) -> None:
        self.has_ended = True
        samples = self.request.samples
        samples[self.place] = Sample(tuple(self.token_ids), tuple(self.logp), reason, stop_string, tuple(self.top))
        done = [sample for sample in samples if sample is not None]
        if len(done) == len(samples):
            answer(self.request.future, done)


class RunningRows:
    """R rows, each with its line in the cache. Between two turns every row has one token that is not yet read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows: list[Row] = []
        self._read: CachedRows | None = None  # None: no rows
        self._unread = torch.empty(0, dtype=torch.int64)  # [R] the last token of each row

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_columns(self) -> int:
        """Tokens of the longest row in the cache."""
        read = self._read
        return 0 if read is None else read.is_token.shape[1]

    def read_last_tokens(self) -> None:
        """One forward pass for all rows."""
        if self._read is not None:
            self._read.append(self._unread)

    def join(self, rows: list[Row], read: CachedRows) -> None:
        """Add rows whose prompts have been read; for those before them, the last tokens have been read too."""
        self.rows = self.rows + rows  # before the cache: if it cannot be joined, these fail with the rest
        if self._read is None:
            self._read = read
        else:
            self._read.join(read)

    def drop(self, *, is_room_wanted: bool) -> None:
        """Drop the rows of requests that are over at once, and those that have ended if room is wanted or it pays."""
        live = [i for i, row in enumerate(self.rows) if not (row.has_ended or row.request.is_over)]
        is_given_up = any(row.request.is_over and not row.has_ended for row in self.rows)
        if not (is_given_up or is_room_wanted or is_worth_compacting(len(live), len(self.rows))):
            return
        if not live:
            self.clear()
        elif self._read is not None and len(live) < len(self.rows):
            kept = torch.tensor(live, device=self.device)
            self.rows, self._unread = [self.rows[i] for i in live], self._unread[kept]
            self._read.select(kept)
            self._read.drop_padding()

    def clear(self) -> None:
        self.rows, self._read = [], None

    def sample(self) -> list[tuple[Row, int, float, TopTokens]]:
        """The next token of every row that has not ended, with its log π and the likeliest tokens there if asked for.

        At least one row is needed.
        """
        assert self._read is not None
        logits = self._read.logits
        self._unread = self._choose(logits)
        logp, top = logp_of(logits, self._unread).tolist(), self._top(logits)
        chosen = zip(self.rows, self._unread.tolist(), logp, top, strict=True)
        return [found for found in chosen if not found[0].has_ended]

    def store(self, ended: Collection[Row], prefix_cache: PrefixCache) -> None:
        """Leave what these rows have read, all but their last tokens, for whoever goes on from there."""
        assert self._read is not None
        places = [i for i, row in enumerate(self.rows) if row in ended]
        tokens = [(*self.rows[i].request.prompt, *self.rows[i].token_ids[:-1]) for i in places]
        prefix_cache.store(tokens, self._read, places)

    def _top(self, logits: Tensor) -> list[TopTokens]:
        """For each row as many as it asks for."""
        top: list[TopTokens] = [()] * len(self.rows)
        asked = [i for i, row in enumerate(self.rows) if row.request.n_top and not row.has_ended]
        if asked:
            most = max(self.rows[i].request.n_top for i in asked)
            for i, found in zip(asked, top_of(logits[asked], most), strict=True):
                top[i] = found[: self.rows[i].request.n_top]
        return top

    def _choose(self, logits: Tensor) -> Tensor:
        """[R] int64; rows that are sampled by one rule are chosen together."""
        uniform = torch.tensor([row.next_uniform() for row in self.rows], dtype=torch.float64, device=self.device)
        alike: dict[tuple[float, float, int], list[int]] = defaultdict(list)
        for i, row in enumerate(self.rows):
            params = row.request.params
            alike[params.temperature, params.top_p, params.top_k].append(i)
        if len(alike) == 1:
            return choose_tokens(logits, uniform, self.rows[0].request.params)
        token_ids = torch.empty(len(self.rows), dtype=torch.int64, device=self.device)
        for members in alike.values():
            at = torch.tensor(members, device=self.device)
            token_ids[at] = choose_tokens(logits[at], uniform[at], self.rows[members[0]].request.params)
        return token_ids
