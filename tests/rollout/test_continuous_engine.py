"""ContinuousEngine against TransformersEngine, whatever joins, leaves, fails or is cancelled meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass

import pytest
import torch

from posttrain.models.prefix_cache import PrefixCache
from posttrain.rollout.continuous_engine import ContinuousEngine
from posttrain.rollout.model_thread import ModelThread
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import Sample, SamplingParams
from tests.rollout.tiny_engines import model_of


@dataclass(frozen=True)
class Ask:
    prompt: tuple[int, ...]
    params: SamplingParams
    n: int
    stream: int


@pytest.fixture
def thread() -> Iterator[ModelThread]:
    thread = ModelThread()
    yield thread
    thread.close()


def asks_of_many_kinds(rng: random.Random, n_vocab: int) -> list[Ask]:
    """Prompts of 1 to 60 tokens, of which some are equal; every rule of sampling; some run out of positions."""
    prompts = [tuple(rng.randrange(3, n_vocab) for _ in range(rng.choice((1, 2, 5, 9, 30, 60)))) for _ in range(12)]
    prompts.append(tuple(rng.randrange(3, n_vocab) for _ in range(120)))
    asks = []
    for i in range(16):
        params = SamplingParams(
            max_new_tokens=rng.choice((1, 3, 12, 30)),
            temperature=rng.choice((0.0, 0.7, 1.0)),
            seed=rng.choice((0, 11)),
            top_p=rng.choice((0.9, 1.0)),
            top_k=rng.choice((0, 5)),
            stop=rng.choice(((), ("1", "+a"), ("\n",))),
        )
        asks.append(Ask(rng.choice(prompts), params, n=rng.choice((1, 1, 2, 5, 9)), stream=2**63 + i))
    return asks


def assert_same_samples(found: list[Sample], expected: list[Sample]) -> None:
    assert [s.token_ids for s in found] == [s.token_ids for s in expected]
    assert [(s.finish_reason, s.stop_string) for s in found] == [(s.finish_reason, s.stop_string) for s in expected]
    for a, b in zip(found, expected, strict=True):
        # float32 logits of size about 10 through other paddings and batch shapes: a few units of 1e-6.
        torch.testing.assert_close(torch.tensor(a.logp), torch.tensor(b.logp), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("seed", "max_rows"), [(0, 7), (1, 24)])  # of 24, ended rows may stay for a while
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("family", "n_cached_tokens"), [("llama", 0), ("gpt2", 0), ("sliding", 0), ("llama", 300), ("gpt2", 2000)]
)
def test_samples_are_those_of_the_batch_engine_whatever_joins_and_leaves(
    thread, tokenizer, family, n_cached_tokens, dtype, seed, max_rows
):
    model = model_of(family, dtype, len(tokenizer))
    rng = random.Random(seed)
    asks = asks_of_many_kinds(rng, len(tokenizer))
    one_by_one = TransformersEngine(model, tokenizer, batch_size=4, device="cpu")
    expected = [one_by_one.sample([ask.prompt], ask.params, ask.n, streams=[ask.stream])[0] for ask in asks]
    prefix_cache = PrefixCache(model.base_model, max_tokens=n_cached_tokens) if n_cached_tokens else None
    engine = ContinuousEngine(
        model, tokenizer, max_rows=max_rows, device="cpu", thread=thread, prefix_cache=prefix_cache
    )
    found: dict[Ask, Future[list[Sample]]] = {}

    def caller(mine: list[Ask], seconds: list[float]) -> None:
        for ask, pause in zip(mine, seconds, strict=True):
            time.sleep(pause)
            found[ask] = engine.submit(ask.prompt, ask.params, n=ask.n, stream=ask.stream)

    rng.shuffle(arrivals := list(asks))
    callers = [
        threading.Thread(target=caller, args=(arrivals[i::3], [rng.random() * 0.01 for _ in arrivals[i::3]]))
        for i in range(3)
    ]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    for ask, samples in zip(asks, expected, strict=True):
        assert_same_samples(found[ask].result(timeout=60), samples)
    assert engine.stats().n_generated_tokens == sum(len(s.token_ids) for samples in expected for s in samples)


def test_close_cancels_what_runs_and_what_waits_and_refuses_more(model, tokenizer):
    thread = ModelThread()
    engine = ContinuousEngine(model, tokenizer, max_rows=2, device="cpu", thread=thread)
    engine.eos_ids = frozenset()
    is_under_way = threading.Event()
    params = SamplingParams(max_new_tokens=120, temperature=1.0, seed=0)
    futures = [engine.submit([3], params, n=2, stream=i, on_token=lambda *_: is_under_way.set()) for i in range(40)]
    assert is_under_way.wait(timeout=30)
    thread.close()
    thread.close()
    assert all(future.done() for future in futures)
    with pytest.raises(CancelledError):
        futures[-1].result()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([3], params, n=1, stream=0)
    assert engine.stats().n_running == engine.stats().n_waiting == 0
