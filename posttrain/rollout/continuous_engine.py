"""Sampling for many callers at once: rows join the batch between two tokens and leave it as they end.

The samples are those of TransformersEngine, token by token: a continuation draws from a random stream of its own, and
what is beside it in the batch changes the last bits of its logits only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models.cached_rows import require_joinable
from posttrain.models.prefix_cache import PrefixCache
from posttrain.rollout.choose import uniform_stream
from posttrain.rollout.model_thread import Inbox, ModelThread, refuse
from posttrain.rollout.running_rows import Request, Row, RunningRows
from posttrain.rollout.stop_strings import StopVocabulary
from posttrain.rollout.transformers_engine import eos_token_ids, read_from, require_cache_of, token_budget
from posttrain.sampling import Sample, SamplingParams, TokenListener

_PADDING_WORTH_A_FORWARD = 64  # columns; prompts that differ by less are read together


@dataclass(frozen=True, slots=True)
class EngineStats:
    n_running: int  # rows that are being sampled now
    n_waiting: int  # samples that wait for a free row now
    n_generated_tokens: int  # since the start
    n_columns: int  # of the cache now: tokens of its longest row


class ContinuousEngine:
    """Samples from a causal language model for callers on any thread, `max_rows` continuations at a time.

    A turn reads the last token of every row in one forward pass, prefills the prompts that found room, and samples a
    token of each row. Requests get rows in the order of their coming; one of more than `max_rows` samples goes to the
    end of the queue after each `max_rows` of them. The model belongs to the engine: it stays in evaluation mode.

    No sequence gets longer than `n_positions`; None is as many as the model has. With a `prefix_cache` of the model's
    trunk a prompt is read from where it leaves what was read before, and what was sampled counts as read.

    An error of a forward pass fails the requests whose rows were in it; those that wait go on.
    Raises ValueError for an architecture whose rows cannot be joined (recurrent, chunked attention).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_rows: int,
        device: torch.device | str,
        thread: ModelThread,
        n_positions: int | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}, needs at least 1")
        require_joinable(model)
        require_cache_of(model, prefix_cache)
        self.n_positions: int = n_positions or model.config.max_position_embeddings
        if prefix_cache is not None and prefix_cache.max_tokens < self.n_positions:
            raise ValueError(
                f"the prefix cache has room for {prefix_cache.max_tokens} tokens and a sequence may have "
                f"{self.n_positions}: raise max_tokens or give the engine fewer n_positions"
            )
        self.model = model.to(device).eval()
        self.max_rows = max_rows
        self.eos_ids = eos_token_ids(model, tokenizer)
        self._stop = StopVocabulary(tokenizer, n_vocab=model.config.vocab_size, device="cpu")
        self._stop.decode()
        self._prefix_cache = prefix_cache
        self._n_generated_tokens = 0
        self._inbox: Inbox[Request] = Inbox(thread.wake)
        self._waiting: deque[Request] = deque()
        self._running = RunningRows(torch.device(device))
        thread.add(self)

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        n: int,
        stream: int,
        on_token: TokenListener | None = None,
        n_top: int = 0,
    ) -> Future[list[Sample]]:
        """n continuations of the prompt, drawn as SamplingEngine.sample draws them.

        Samples and listener are told of the `n_top` likeliest tokens at the place of each token; 0 costs nothing.

        The future stays pending until it is done, so `cancel()` always works; its rows are dropped before their next
        token. `on_token` is called on the model thread and must be quick; an error in it fails this request.
        Raises ValueError for a prompt that is empty, has unknown tokens or leaves no position free, and RuntimeError
        once the thread is closed.
        """
        n_new = token_budget(prompt, params, self.n_positions, name="the prompt")
        last_id = self.model.config.vocab_size - 1
        if not 0 <= min(prompt) <= max(prompt) <= last_id:
            raise ValueError(f"the prompt has ids from {min(prompt)} to {max(prompt)}, the model knows 0 to {last_id}")
        if n < 1:
            raise ValueError(f"n is {n}, needs at least 1")
        if n_top < 0:
            raise ValueError(f"n_top is {n_top}, needs 0 (none) or more")
        if not 0 <= stream < 2**64:
            raise ValueError(f"stream is {stream}, needs an unsigned 64-bit number")
        stop = self._stop.of(params.stop)
        request = Request(tuple(prompt), params, stream, n_new, stop, on_token, n_top, samples=[None] * n)
        self._inbox.put(request)
        return request.future

    def stats(self) -> EngineStats:
        return EngineStats(
            n_running=sum(not row.has_ended for row in self._running.rows),
            n_waiting=sum(request.n_waiting for request in (*self._inbox.peek(), *tuple(self._waiting))),
            n_generated_tokens=self._n_generated_tokens,
            n_columns=self._running.n_columns,
        )

    @torch.inference_mode()
    def take_turn(self) -> bool:
        self._waiting.extend(self._inbox.take())
        if any(request.is_over for request in self._waiting):
            self._waiting = deque(request for request in self._waiting if not request.is_over)
        self._running.drop(is_room_wanted=bool(self._waiting))
        self._running.read_last_tokens()
        for rows in _of_like_length(self._admit(self.max_rows - len(self._running))):
            self._prefill(rows)
        if self._running.rows:
            self._sample()
        return bool(self._running.rows or self._waiting)

    def fail(self, error: Exception) -> None:
        for row in self._running.rows:
            refuse(row.request.future, error)
        self._running.clear()

    def close(self) -> None:
        for request in (*self._inbox.close(), *self._waiting, *(row.request for row in self._running.rows)):
            request.future.cancel()
        self._waiting.clear()
        self._running.clear()

    def _admit(self, n_free: int) -> list[Row]:
        """Rows for those that wait longest."""
        rows: list[Row] = []
        while n_free > 0 and self._waiting:
            request = self._waiting.popleft()
            first = request.n_admitted
            n = min(request.n_waiting, n_free, self.max_rows - first % self.max_rows)
            for place in range(first, first + n):
                uniform = uniform_stream(request.params.seed, request.stream, place, request.n_new)
                rows.append(Row(request, place, uniform))
            request.n_admitted += n
            n_free -= n
            if request.n_admitted % self.max_rows == 0 and request.n_waiting:
                self._waiting.append(request)
            elif request.n_waiting:
                self._waiting.appendleft(request)
        return rows

    def _prefill(self, rows: list[Row]) -> None:
        """Read each prompt of these rows once, give every row a copy of its cache, and let them join the batch."""
        prompts = list(dict.fromkeys(row.request.prompt for row in rows))
        place = {prompt: i for i, prompt in enumerate(prompts)}
        try:
            read = read_from(self._prefix_cache, self.model, prompts)
            if len(rows) != len(prompts):
                read.select(torch.tensor([place[row.request.prompt] for row in rows], device=read.position.device))
        except Exception as error:
            for row in rows:
                refuse(row.request.future, error)
            return
        try:
            self._running.join(rows, read)
        except Exception as error:  # some layers of the shared cache may have taken them in, so none can go on
            self.fail(error)

    def _sample(self) -> None:
        sampled = self._running.sample()
        self._n_generated_tokens += len(sampled)
        for row, token_id, logp, top in sampled:
            if row.request.is_over:
                continue
            try:
                row.take(token_id, logp, top, self.eos_ids)
            except Exception as error:
                refuse(row.request.future, error)
        ended = {row for row, *_ in sampled if row.has_ended}
        if ended and self._prefix_cache is not None:
            self._running.store(ended, self._prefix_cache)


def _of_like_length(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Groups of rows whose prompts need little padding beside each other."""
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.request.prompt)):
        if group and len(row.request.prompt) > 2 * len(group[0].request.prompt) + _PADDING_WORTH_A_FORWARD:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
