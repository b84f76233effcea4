"""TransformersBackend: many tasks of one event loop, sampled and scored side by side."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model
from posttrain.pretrained import load_tokenizer
from posttrain.rollout.continuous_engine import ContinuousEngine
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams, TopTokens
from posttrain.search.cached_scorer import CachedScorer
from posttrain.search.scorer import ReencodingScorer, Scored
from posttrain.serve.transformers_backend import TransformersBackend, load_transformers_backend
from posttrain.serve.value_queue import ValueQueue
from tests.evaluation.tiny_policy import write_policy, write_value_model
from tests.rollout.tiny_engines import CountedForwards, TurnsByHand

STEP = SamplingParams(max_new_tokens=5, temperature=1.0, seed=3)
N_ROUNDS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A policy, a value model on a trunk of its own, and one on the policy's."""
    base = tmp_path_factory.mktemp("networks")
    policy, other = write_policy(base / "policy"), write_policy(base / "other", seed=7)
    return policy, write_value_model(base / "value", other), write_value_model(base / "head", policy)


def load(folders, *, value: int | None = 1, n_cached_tokens: int = 2000) -> TransformersBackend:
    value_model = None if value is None else folders[value]
    return load_transformers_backend(
        folders[0], value_model, dtype=torch.float32, device="cpu", max_rows=64, n_cached_tokens=n_cached_tokens
    )


async def search(backend: TransformersBackend, prompt: list[int], stream: int) -> list[int]:
    """Three candidates a step, the best by value goes on, its siblings are forgotten."""
    prefix = list(prompt)
    for round_ in range(N_ROUNDS):
        samples = await backend.sample(prefix, STEP, n=3, stream=stream * N_ROUNDS + round_)
        candidates = [[*prefix, *sample.token_ids] for sample in samples]
        values = (await backend.score(candidates)).values
        best = max(range(3), key=values.__getitem__)
        backend.forget([candidate for i, candidate in enumerate(candidates) if i != best])
        prefix = candidates[best]
    return prefix


class ByHand:
    """A backend whose turns a test takes, each after the tasks of the loop have come to a standstill."""

    def __init__(self, folders) -> None:
        policy = load_policy(folders[0], dtype=torch.float32)
        value = load_value_model(folders[1], dtype=torch.float32)
        tokenizer = load_tokenizer(folders[0])
        self.policy_forwards, self.value_forwards = CountedForwards(policy), CountedForwards(value.base_model)
        thread = TurnsByHand()
        self.engine = ContinuousEngine(policy, tokenizer, max_rows=64, device="cpu", thread=thread)
        self.engine.eos_ids = frozenset()
        self.scorer = CachedScorer(value, max_tokens=2000, batch_size=64)
        values = ValueQueue(self.scorer, n_positions=64, n_vocab=11, max_sequences=64, thread=thread)
        self.backend = TransformersBackend(
            self.engine, values, thread=thread, tokenizer=tokenizer, policy_name="policy", value_name="value"
        )
        self._workers = thread.workers

    async def turns_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            for _ in range(10):
                await asyncio.sleep(0)
            for worker in self._workers:
                worker.take_turn()

    def run(self, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
        async def all_of_them() -> list[Any]:
            together = asyncio.gather(*calls)
            await self.turns_until(together.done)
            return await together

        return asyncio.run(all_of_them())


def test_ten_searches_cost_the_forward_passes_of_one(folders):
    alone = ByHand(folders)
    (expected,) = alone.run(search(alone.backend, [4, 9, 2], 0))
    prompts = [[4, 9, 2], *([4 + i % 7, 9, 4 + i % 5, 2] for i in range(9))]
    many = ByHand(folders)
    found = many.run(*(search(many.backend, prompt, i) for i, prompt in enumerate(prompts)))
    assert found[0] == expected
    assert all(len(answer) == len(prompt) + 5 * N_ROUNDS for answer, prompt in zip(found, prompts, strict=True))
    # A round is a prefill and four more steps; one pass of the value trunk scores what it left behind.
    assert len(alone.policy_forwards.shapes) == N_ROUNDS * 5
    assert len(many.policy_forwards.shapes) == N_ROUNDS * 5
    assert max(n_rows for n_rows, n_columns in many.policy_forwards.shapes if n_columns == 1) == 30
    # A trunk reads the shared prompt before the branches, so the first round takes it another pass.
    assert len(many.value_forwards.shapes) <= len(alone.value_forwards.shapes) + 2


def test_cancelled_task_frees_its_rows_before_their_next_token(folders):
    hand = ByHand(folders)
    long = SamplingParams(max_new_tokens=30, temperature=1.0, seed=0)

    async def go() -> None:
        kept = asyncio.create_task(hand.backend.sample([4], long, n=1, stream=0))
        given_up = asyncio.create_task(hand.backend.sample([5], long, n=6, stream=1))
        await hand.turns_until(lambda: hand.backend.stats().n_running == 7)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        n_before = len(hand.policy_forwards.shapes)
        await hand.turns_until(kept.done)
        assert {n_rows for n_rows, _ in hand.policy_forwards.shapes[n_before:]} == {1}
        assert len((await kept)[0].token_ids) == 30

    asyncio.run(go())


def test_value_is_there_while_a_long_sample_is_under_way(folders):
    hand = ByHand(folders)
    long = SamplingParams(max_new_tokens=40, temperature=1.0, seed=0)

    async def go() -> None:
        sampling = asyncio.create_task(hand.backend.sample([4], long, n=2, stream=0))
        await hand.turns_until(lambda: hand.backend.stats().n_running == 2)
        scoring = asyncio.create_task(hand.backend.score([[4, 5]]))
        await hand.turns_until(scoring.done)
        assert hand.backend.stats().n_generated_tokens <= 2 * 3  # a turn that scored, and one to hear of it
        await hand.turns_until(sampling.done)

    asyncio.run(go())


@pytest.fixture
def backend(folders) -> Iterator[TransformersBackend]:
    backend = load(folders)
    yield backend
    asyncio.run(backend.close())


def test_ten_searches_on_the_model_thread_find_what_each_finds_alone(folders, backend):
    prompts = [[4 + i % 7, 9, 4 + i % 5, 2][: 1 + i % 4] for i in range(10)]

    async def all_at_once() -> list[list[int]]:
        return await asyncio.gather(*(search(backend, prompt, i) for i, prompt in enumerate(prompts)))

    found = asyncio.run(all_at_once())
    for i, prompt in enumerate(prompts):
        assert asyncio.run(search(backend, prompt, i)) == found[i]
    stats = backend.stats()
    assert (stats.n_running, stats.n_waiting) == (0, 0)
    assert stats.n_value_tokens_read < stats.n_value_tokens_cached


def test_samples_are_those_of_the_engine_and_listeners_hear_them_on_the_event_loop(folders, backend):
    heard: list[tuple[int, int, float, TopTokens]] = []
    threads: set[threading.Thread] = set()

    def listen(place: int, token_id: int, logp: float, top: TopTokens) -> None:
        heard.append((place, token_id, logp, top))
        threads.add(threading.current_thread())

    async def go():
        samples = await backend.sample([4, 9], STEP, n=3, stream=8, on_token=listen, n_top=2)
        assert len(heard) == sum(len(sample.token_ids) for sample in samples)  # all of it before the answer
        return samples

    samples = asyncio.run(go())
    assert threads == {threading.current_thread()}
    for place, sample in enumerate(samples):
        assert [(*token,) for i, *token in heard if i == place] == list(
            zip(sample.token_ids, sample.logp, sample.top, strict=True)
        )
    policy = load_policy(folders[0], dtype=torch.float32)
    engine = TransformersEngine(policy, backend.tokenizer, batch_size=3, device="cpu")
    (expected,) = engine.sample([[4, 9]], STEP, 3, streams=[8])
    assert [sample.token_ids for sample in samples] == [sample.token_ids for sample in expected]


@pytest.mark.parametrize("value", [1, 2])
@pytest.mark.parametrize("n_cached_tokens", [0, 500])
def test_values_are_those_of_reading_each_sequence_anew(folders, value, n_cached_tokens):
    backend = load(folders, value=value, n_cached_tokens=n_cached_tokens)
    sequences = [[4, 9, 2], [4, 9, 2, 5], [7]]
    oracle = ReencodingScorer(load_value_model(folders[value], dtype=torch.float32), batch_size=1)

    async def go() -> None:
        # float32 sums in another order; values of order 1.
        assert (await backend.score(sequences)).values == pytest.approx(oracle.score(sequences), abs=1e-5)
        prefixes = [[4, 9, 2, 5][: t + 1] for t in range(4)]
        assert (await backend.score_all([4, 9, 2, 5])).values == pytest.approx(oracle.score(prefixes), abs=1e-5)
        assert await backend.score([]) == Scored([], 0)
        await backend.close()

    asyncio.run(go())


def test_head_on_the_policys_trunk_reads_nothing_but_the_last_token_of_what_was_sampled(folders):
    backend = load(folders, value=2)

    async def go() -> None:
        samples = await backend.sample([4, 9, 2], STEP, n=3, stream=0)
        n_before = backend.stats().n_value_tokens_read
        await backend.score([[4, 9, 2, *sample.token_ids] for sample in samples])
        assert backend.stats().n_value_tokens_read - n_before == len({sample.token_ids for sample in samples})
        await backend.close()

    asyncio.run(go())


@pytest.mark.parametrize(("value", "n_cached_tokens"), [(1, 2000), (2, 2000), (1, 60), (1, 0)])
def test_what_calls_at_once_count_adds_up_to_the_totals(folders, value, n_cached_tokens):
    """Of sequences that share prefixes, in batches that the calls share; the small cache has to make room."""
    backend = load(folders, value=value, n_cached_tokens=n_cached_tokens)
    row = [4 + i % 7 for i in range(12)]
    asked = [[[*row[:n], 5, 5 + i % 3] for n in (3, 7, 12)] for i in range(8)]

    async def go() -> None:
        scored = await asyncio.gather(*map(backend.score, asked), *(backend.score_all(each[0]) for each in asked))
        n_tokens = [sum(map(len, each)) for each in asked] + [len(each[0]) for each in asked]
        n_read = [each.n_tokens_read for each in scored]
        assert all(0 <= read <= n for read, n in zip(n_read, n_tokens, strict=True))
        stats = backend.stats()
        assert stats.n_value_tokens_read == sum(n_read)
        assert stats.n_value_tokens_cached == sum(n_tokens) - sum(n_read)
        assert (stats.n_value_tokens_cached == 0) == (n_cached_tokens == 0)
        await backend.close()

    asyncio.run(go())


def test_without_a_value_model_scoring_is_refused_and_hints_are_ignored(folders):
    backend = load(folders, value=None)
    assert (backend.policy_name, backend.value_name) == ("policy", None)
    backend.forget([[1]])

    async def refused(call: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(ValueError, match="there is no value model"):
            await call()

    async def go() -> None:
        await refused(lambda: backend.score([[4]]))
        await refused(lambda: backend.score_all([4]))
        await backend.close()

    asyncio.run(go())


def test_cache_smaller_than_the_positions_bounds_a_sequence(folders):
    backend = load(folders, n_cached_tokens=20)
    assert backend.n_positions == 20

    async def go() -> None:
        (sample,) = await backend.sample([4] * 18, STEP, n=1, stream=0)
        assert len(sample.token_ids) <= 2
        with pytest.raises(ValueError, match="20 tokens"):
            await backend.sample([4] * 20, STEP, n=1, stream=0)
        with pytest.raises(ValueError, match="21 tokens"):
            await backend.score([[4] * 21])
        await backend.close()

    asyncio.run(go())


def test_close_while_busy_cancels_the_calls_in_flight_and_refuses_more(folders):
    threads_before = set(threading.enumerate())  # other backends of this process have model threads too
    backend = load(folders)
    long = SamplingParams(max_new_tokens=60, temperature=1.0, seed=0)

    async def go() -> None:
        is_under_way = asyncio.Event()
        calls = [
            asyncio.create_task(backend.sample([4], long, n=40, stream=i, on_token=lambda *_: is_under_way.set()))
            for i in range(20)
        ]
        await is_under_way.wait()
        await backend.close()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(outcomes[-1], asyncio.CancelledError)
        with pytest.raises(RuntimeError, match="closed"):
            await backend.sample([4], STEP, n=1, stream=0)

    asyncio.run(go())
    assert "model" not in {thread.name for thread in set(threading.enumerate()) - threads_before}
