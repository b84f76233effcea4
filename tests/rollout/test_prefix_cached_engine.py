"""TransformersEngine with a prefix cache against the same engine without one."""

from __future__ import annotations

import copy

import pytest
import torch

from posttrain.models.prefix_cache import PrefixCache
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import Sample, SamplingParams

STEP = SamplingParams(max_new_tokens=10, temperature=1.0, seed=4, stop=("\n", "a"))


def engine_with(model, tokenizer, *, max_tokens: int | None, batch_size: int = 4) -> TransformersEngine:
    cache = None if max_tokens is None else PrefixCache(model.base_model, max_tokens=max_tokens)
    return TransformersEngine(model, tokenizer, batch_size=batch_size, device="cpu", prefix_cache=cache)


def grow(engine: TransformersEngine, n_rounds: int) -> list[list[list[Sample]]]:
    """Prompts that are continued by their own samples, two of three each time."""
    prompts = [(3, 4, 5), (3, 4), (9,)]
    rounds = []
    for _ in range(n_rounds):
        samples = engine.sample(prompts, STEP, 3)
        rounds.append(samples)
        prompts = [
            (*prompt, *sample.token_ids)
            for prompt, three in zip(prompts, samples, strict=True)
            for sample in three[:2]
        ]
    return rounds


@pytest.mark.parametrize("max_tokens", [60, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_those_of_an_engine_without_a_cache_whatever_its_room(model, tokenizer, dtype, max_tokens):
    model = model.to(dtype)
    rounds = [grow(engine_with(model, tokenizer, max_tokens=room), n_rounds=4) for room in (None, max_tokens)]
    plain, cached = ([sample for samples in one for three in samples for sample in three] for one in rounds)
    assert len(plain) == 3 * (3 + 6 + 12 + 24)
    assert len({len(sample.token_ids) for sample in plain}) > 3  # rows left their batch while others went on
    for a, b in zip(plain, cached, strict=True):
        assert (a.token_ids, a.finish_reason, a.stop_string) == (b.token_ids, b.finish_reason, b.stop_string)
        # float32 (also inside the norms of the float64 model): as between batch sizes, a few units of 1e-6 at size 10
        torch.testing.assert_close(torch.tensor(a.logp), torch.tensor(b.logp), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_prompt_that_is_an_own_sample_costs_its_last_token_and_later_nothing(model, tokenizer, batch_size):
    engine = engine_with(model, tokenizer, max_tokens=10_000, batch_size=batch_size)
    cache = engine.prefix_cache
    prompt = (3, 4, 5, 6)
    ((*samples,),) = engine.sample([prompt], STEP, 6)
    distinct = {sample.token_ids for sample in samples}
    assert cache.n_tokens_read == len(prompt)
    stored = {(*prompt, *sample)[:n] for sample in distinct for n in range(1, len(prompt) + len(sample))}
    assert cache.n_tokens == len(stored)
    prompts = [(*prompt, *sample) for sample in sorted(distinct)]
    # Unless that sample is also the beginning of another, which none is: each ends where none goes on.
    engine.sample(prompts, STEP, 1)
    assert cache.n_tokens_read == len(prompt) + len(prompts)
    engine.sample(prompts, STEP, 1)
    assert cache.n_tokens_read == len(prompt) + len(prompts)


def test_a_sample_longer_than_the_room_is_left_out(model, tokenizer):
    engine = engine_with(model, tokenizer, max_tokens=6)
    plain = engine_with(model, tokenizer, max_tokens=None)
    long = SamplingParams(max_new_tokens=10, temperature=1.0, seed=4)
    found, expected = (one.sample([(3, 4, 5)], long, 2) for one in (engine, plain))
    assert [[s.token_ids for s in samples] for samples in found] == [[s.token_ids for s in e] for e in expected]
    assert engine.prefix_cache.n_tokens <= 6
    with pytest.raises(ValueError, match="row 0 has 7 tokens and the cache room for 6"):
        engine.sample([(3,) * 7], long, 1)


def test_a_cache_of_another_trunk_is_refused(model, tokenizer):
    cache = PrefixCache(copy.deepcopy(model).base_model, max_tokens=10)
    with pytest.raises(ValueError, match="the prefix cache reads with another trunk"):
        TransformersEngine(model, tokenizer, batch_size=1, device="cpu", prefix_cache=cache)
