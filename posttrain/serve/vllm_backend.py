"""The server's networks on vLLM: a policy engine, and perhaps a value engine, that many tasks use at once.

For when an engine may be built, and how much memory it takes, see posttrain.models.vllm_args.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from posttrain.data.tokenizer_card import require_same_tokens
from posttrain.models.vllm_args import import_vllm
from posttrain.pretrained import load_tokenizer
from posttrain.rollout.vllm_engine import policy_engine_args, request_args, sample_of
from posttrain.sampling import Sample, SamplingParams, TokenListener, TopTokens
from posttrain.search.scorer import Scored
from posttrain.search.vllm_scorer import finite_value, require_scorable, value_engine_args
from posttrain.serve.backend import BackendStats

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VllmNetwork:
    """One engine: which network it runs, and its part of the accelerator's memory (see engine_args)."""

    path: str | Path  # a model folder or Hub id
    memory_share: float

    @property
    def name(self) -> str:
        """What requests call it: a folder's own name, or the Hub id."""
        return Path(self.path).resolve().name if Path(self.path).is_dir() else str(self.path)


class VllmBackend:
    """A Backend on vLLM's asynchronous engines: each request is one of vLLM's and joins the batch at its next step.

    Samples are those of VllmEngine: the same parameters and stream give the same draws, however requests are mixed,
    but for tokens whose probabilities are nearer to each other than the kernels' rounding.
    Values reuse what is cached of a sequence's prefix, and vLLM frees by itself what was used longest ago.
    """

    def __init__(
        self, policy: VllmNetwork, value: VllmNetwork | None, *, dtype: str, max_model_len: int | None
    ) -> None:
        self._vllm = import_vllm()
        self.tokenizer = load_tokenizer(policy.path)
        self.policy_name = policy.name
        self.value_name = None if value is None else value.name
        shared = {"dtype": dtype, "max_model_len": max_model_len}
        policy_args = policy_engine_args(policy.path, memory_share=policy.memory_share, **shared)
        value_args = None
        if value is not None:  # both checks come before the first engine's minute
            value_args = value_engine_args(value.path, memory_share=value.memory_share, **shared)
            require_same_tokens(self.tokenizer, value.path, "value model")
        self.policy_counts = EngineCounts()
        self._policy = self._start(policy_args, self.policy_counts)
        self._value = None if value_args is None else self._start(value_args, EngineCounts())
        engines = [engine for engine in (self._policy, self._value) if engine is not None]
        self.n_positions: int = min(engine.model_config.max_model_len for engine in engines)
        self._request_numbers = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._n_sampling = 0
        self._n_value_tokens_read = self._n_value_tokens_cached = 0

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
        """n continuations as n requests of vLLM, which share the prompt's cache; see Backend."""
        if not 0 < len(prompt) < self.n_positions:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, needs 1 to {self.n_positions - 1}: the engines were started "
                f"for {self.n_positions} tokens of prompt and completion together"
            )
        arguments = [request_args(params, stream, place) | {"logprobs": n_top} for place in range(n)]
        return await self._together(
            self._sample(prompt, asked, place, on_token, n_top) for place, asked in enumerate(arguments)
        )

    async def score(self, sequences: Sequence[Sequence[int]]) -> Scored:
        """V of each sequence at its last token, its cached blocks not read again; see Backend."""
        pooled = await self._pool(sequences, "classify")
        return Scored([each.values[-1] for each in pooled], sum(each.n_tokens_read for each in pooled))

    async def score_all(self, sequence: Sequence[int]) -> Scored:
        """V at every token, by vLLM's token_classify: the same head at each position of one forward.

        It reads the whole sequence, because cached positions leave no hidden state.
        """
        (scored,) = await self._pool([sequence], "token_classify")
        return scored

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        """Nothing: vLLM frees the blocks used longest ago when it needs room."""

    def stats(self) -> BackendStats:
        # vLLM reports once a step, so a request that was cancelled since may still be among its waiting.
        n_waiting = min(self.policy_counts.n_waiting, self._n_sampling)
        return BackendStats(
            n_running=self._n_sampling - n_waiting,
            n_waiting=n_waiting,
            n_generated_tokens=self.policy_counts.n_generated_tokens,
            n_value_tokens_read=self._n_value_tokens_read,
            n_value_tokens_cached=self._n_value_tokens_cached,
        )

    @property
    def is_alive(self) -> bool:
        return not any(engine.errored for engine in (self._policy, self._value) if engine is not None)

    async def close(self) -> None:
        """Cancel the calls in flight and end the engines' processes."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._policy.shutdown()
        if self._value is not None:
            self._value.shutdown()

    def _start(self, arguments: dict[str, Any], counts: EngineCounts) -> Any:
        from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports] - an extra

        args = self._vllm.AsyncEngineArgs(**arguments, disable_log_stats=True)  # but for `counts`
        stat_loggers: list[Any] = [lambda config, index: counts]
        return AsyncLLM.from_engine_args(args, stat_loggers=stat_loggers)

    async def _together(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """The results in order. One that fails, or cancelling the caller, cancels the others."""
        tasks = [asyncio.create_task(call) for call in calls]
        self._tasks.update(tasks)
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            self._tasks.difference_update(tasks)

    async def _sample(
        self, prompt: Sequence[int], asked: dict[str, Any], place: int, on_token: TokenListener | None, n_top: int
    ) -> Sample:
        kind = self._vllm.sampling_params.RequestOutputKind
        output_kind = kind.FINAL_ONLY if on_token is None else kind.DELTA
        settings = self._vllm.SamplingParams(**asked, output_kind=output_kind)
        parts: list[Any] = []
        self._n_sampling += 1
        try:
            async for output in self._outputs(self._policy, self._policy.generate, prompt, settings):
                part = output.outputs[0]
                parts.append(part)
                if on_token is not None:
                    for token, at in zip(part.token_ids, part.logprobs, strict=True):
                        on_token(place, token, at[token].logprob, _top(at, n_top))
        finally:
            self._n_sampling -= 1
        sample = sample_of(parts)
        if n_top == 0:
            return sample
        return replace(sample, top=tuple(_top(at, n_top) for part in parts for at in part.logprobs))

    async def _pool(self, sequences: Sequence[Sequence[int]], task: str) -> list[Scored]:
        if self._value is None:
            raise ValueError("this server has no value model: start it with one to search or to read values")
        require_scorable(sequences, self.n_positions)
        return await self._together(self._values(sequence, task) for sequence in sequences)

    async def _values(self, sequence: Sequence[int], task: str) -> Scored:
        assert self._value is not None  # _pool looked
        settings = self._vllm.PoolingParams(task=task, use_activation=False)  # V is no probability
        (output,) = [o async for o in self._outputs(self._value, self._value.encode, sequence, settings)]
        n_read = len(sequence) - output.num_cached_tokens
        self._n_value_tokens_cached += output.num_cached_tokens
        self._n_value_tokens_read += n_read
        return Scored([finite_value(value) for value in output.outputs.data.flatten().tolist()], n_read)

    async def _outputs(self, engine: Any, method: Any, token_ids: Sequence[int], settings: Any) -> AsyncIterator[Any]:
        """What one request yields. However the caller leaves, the request has left the engine."""
        request_id = str(next(self._request_numbers))
        try:
            async with aclosing(method({"prompt_token_ids": list(token_ids)}, settings, request_id)) as outputs:
                async for output in outputs:
                    yield output
        except asyncio.CancelledError:
            await engine.abort(request_id)  # vLLM itself forgets a request that was cancelled on its way in
            raise


def _top(at: Mapping[int, Any], n: int) -> TopTokens:
    """The n likeliest of what vLLM says of one place: those, and the token that was sampled."""
    found = [(token_id, said.logprob) for token_id, said in at.items()]
    return tuple(sorted(found, key=lambda one: -one[1])[:n])


class EngineCounts:
    """One of vLLM's stat loggers: what its scheduler says after each step."""

    def __init__(self) -> None:
        self.n_steps = 0
        self.n_waiting = 0
        self.n_generated_tokens = 0

    def record(self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0):
        if scheduler_stats is not None:
            self.n_waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
        if iteration_stats is not None:
            self.n_steps += 1
            self.n_generated_tokens += iteration_stats.num_generation_tokens

    def log(self) -> None: ...

    def log_engine_initialized(self) -> None: ...

    def record_sleep_state(self, is_awake: int, level: int) -> None: ...

    def record_admission_rejection(self, reason: str) -> None: ...
