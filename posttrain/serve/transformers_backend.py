"""The networks of a server in this process: no GPU is needed and nothing else is installed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.tokenizer_card import require_same_tokens
from posttrain.models.actor_critic import require_same_vocabulary
from posttrain.models.policy import load_policy
from posttrain.models.prefix_cache import PrefixCache
from posttrain.models.roles import first_difference
from posttrain.models.value import load_value_model
from posttrain.pretrained import load_tokenizer
from posttrain.rollout.continuous_engine import ContinuousEngine
from posttrain.rollout.model_thread import ModelThread
from posttrain.sampling import Sample, SamplingParams, TokenListener
from posttrain.search.cached_scorer import CachedScorer, SharedTrunkScorer
from posttrain.search.scorer import ReencodingScorer, Scored
from posttrain.serve.backend import BackendStats
from posttrain.serve.value_queue import CountingScorer, ValueQueue

T = TypeVar("T")


class TransformersBackend:
    """A Backend on one model thread, which takes turns between the policy and the value model.

    `engine` and `values`, if there is a value model, take their turns on `thread`.
    """

    def __init__(
        self,
        engine: ContinuousEngine,
        values: ValueQueue | None,
        *,
        thread: ModelThread,
        tokenizer: PreTrainedTokenizerBase,
        policy_name: str,
        value_name: str | None,
    ) -> None:
        if (values is None) != (value_name is None):
            raise ValueError(f"value_name is {value_name!r} {'without' if values is None else 'with'} a value model")
        self.tokenizer = tokenizer
        self.policy_name = policy_name
        self.value_name = value_name
        self.n_positions = engine.n_positions if values is None else min(engine.n_positions, values.n_positions)
        self._engine = engine
        self._values = values
        self._thread = thread
        self._mail: _LoopMail | None = None

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
        listener = None if on_token is None else self._on_this_loop(on_token)
        return await _answer_of(
            self._engine.submit(prompt, params, n=n, stream=stream, on_token=listener, n_top=n_top)
        )

    async def score(self, sequences: Sequence[Sequence[int]]) -> Scored:
        return await _answer_of(self._value_queue().score(sequences)) if sequences else Scored([], 0)

    async def score_all(self, sequence: Sequence[int]) -> Scored:
        return await _answer_of(self._value_queue().score_all(sequence))

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        if self._values is not None:
            self._values.forget(sequences)

    def stats(self) -> BackendStats:
        engine = self._engine.stats()
        scorer = None if self._values is None else self._values.scorer
        return BackendStats(
            n_running=engine.n_running,
            n_waiting=engine.n_waiting,
            n_generated_tokens=engine.n_generated_tokens,
            n_value_tokens_read=0 if scorer is None else scorer.n_tokens_read,
            n_value_tokens_cached=0 if scorer is None else scorer.n_tokens_cached,
        )

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.close)

    def _value_queue(self) -> ValueQueue:
        if self._values is None:
            raise ValueError("there is no value model: start the server with one to score or to search by value")
        return self._values

    def _on_this_loop(self, listener: TokenListener) -> TokenListener:
        loop = asyncio.get_running_loop()
        if self._mail is None or self._mail.loop is not loop:
            self._mail = _LoopMail(loop)
        mail = self._mail
        return lambda place, token_id, logp, top: mail.post(listener, place, token_id, logp, top)


class _LoopMail:
    """Calls that the model thread posts and the event loop makes, in order; one wake-up for all that have come."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_due = False

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        self._calls.append((call, arguments))
        if not self._is_due:
            self._is_due = True
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_due = False  # before the last look: what comes after it is due again
        while self._calls:
            call, arguments = self._calls.popleft()
            self.loop.call_soon(call, *arguments)


async def _answer_of(future: Future[T]) -> T:
    """Its result; when the task that waits is cancelled, so is the work."""
    try:
        return await asyncio.wrap_future(future)
    finally:
        future.cancel()  # does nothing to one that is done


def load_transformers_backend(
    policy: str | Path,
    value_model: str | Path | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    max_rows: int,
    n_cached_tokens: int,
) -> TransformersBackend:
    """The backend of a policy and perhaps a value model, each a folder or Hub id.

    `max_rows` continuations are sampled at once. Each network remembers `n_cached_tokens` tokens that it has read,
    which bounds a sequence too; 0 remembers none, and values are then read from the first token every time. A value
    model that is a head on the policy's own trunk shares its memory.
    Raises what load_policy and load_value_model raise, and ValueError for a value model of other tokens.
    """
    tokenizer = load_tokenizer(policy)
    network = load_policy(policy, dtype=dtype)
    network.to(device)  # pyright: ignore[reportArgumentType] - transformers hides that `to` is a method
    value = None
    if value_model is not None:
        require_same_tokens(tokenizer, value_model, "value model")
        value = load_value_model(value_model, dtype=dtype)
        require_same_vocabulary(network, value, "value model", "both read the same token ids")
        value.to(device)  # pyright: ignore[reportArgumentType] - as above
    positions = [model.config.max_position_embeddings for model in (network, value) if model is not None]
    n_positions = min(*positions, n_cached_tokens or positions[0])
    trunk: Any = network.base_model  # PreTrainedModel; transformers says Module
    prefix_cache = PrefixCache(trunk, max_tokens=n_cached_tokens) if n_cached_tokens else None
    thread = ModelThread()
    engine = ContinuousEngine(
        network,
        load_tokenizer(policy),  # its own: a tokenizer that two threads use at once may refuse one of them
        max_rows=max_rows,
        n_positions=n_positions,
        device=device,
        thread=thread,
        prefix_cache=prefix_cache,
    )
    values = None
    if value is not None:
        scorer = _scorer(value, prefix_cache, batch_size=max_rows)
        n_vocab = value.config.vocab_size
        values = ValueQueue(scorer, n_positions=n_positions, n_vocab=n_vocab, max_sequences=max_rows, thread=thread)
    return TransformersBackend(
        engine,
        values,
        thread=thread,
        tokenizer=tokenizer,
        policy_name=_name(policy),
        value_name=None if value_model is None else _name(value_model),
    )


def _scorer(value: PreTrainedModel, policy_cache: PrefixCache | None, *, batch_size: int) -> CountingScorer:
    if policy_cache is None:
        return ReencodingScorer(value, batch_size=batch_size)
    trunk: Any = value.base_model  # PreTrainedModel; transformers says Module
    if first_difference(trunk, policy_cache.trunk) is None:
        return SharedTrunkScorer(value, prefix_cache=policy_cache, batch_size=batch_size)
    return CachedScorer(value, max_tokens=policy_cache.max_tokens, batch_size=batch_size)


def _name(path: str | Path) -> str:
    """A Hub id as it is; of a folder its own name, since the way to it is nobody's business."""
    return Path(path).resolve().name if Path(path).is_dir() else str(path)
