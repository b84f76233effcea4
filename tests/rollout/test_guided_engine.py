"""Classifier-free guidance between two prompts."""

from __future__ import annotations

import pytest
import torch

from posttrain.rollout.guided_engine import GuidedEngine
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams

NOTHING = [5]
PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15]]
PARAMS = SamplingParams(max_new_tokens=12, temperature=1.0, seed=3)


def guided(model, tokenizer, guidance: float, batch_size: int = 5) -> GuidedEngine:
    return GuidedEngine(
        model, tokenizer, unconditional=NOTHING, guidance=guidance, batch_size=batch_size, device="cpu"
    )


def test_guidance_1_gives_the_samples_of_the_policy_exactly(model, tokenizer):
    plain = TransformersEngine(model, tokenizer, batch_size=5, device="cpu")
    assert guided(model, tokenizer, 1.0).sample(PROMPTS, PARAMS, 4) == plain.sample(PROMPTS, PARAMS, 4)


def test_guidance_0_gives_the_samples_of_the_unconditional_prompt_token_for_token(model, tokenizer):
    # Three equal prompts are read side by side there, one alone here: log-probs differ in their last bits.
    plain = TransformersEngine(model, tokenizer, batch_size=5, device="cpu")
    without, here = (
        [sample for row in rows for sample in row]
        for rows in (
            plain.sample([NOTHING] * 3, PARAMS, 4),
            guided(model, tokenizer, 0.0).sample(PROMPTS, PARAMS, 4),
        )
    )
    assert [sample.token_ids for sample in here] == [sample.token_ids for sample in without]
    for one, other in zip(here, without, strict=True):
        torch.testing.assert_close(torch.tensor(one.logp), torch.tensor(other.logp), rtol=0, atol=1e-5)
    assert [s.token_ids for row in plain.sample(PROMPTS, PARAMS, 4) for s in row] != [s.token_ids for s in without]


@pytest.mark.parametrize("guidance", [-1.0, 0.5, 3.0])
def test_log_probs_are_those_of_the_extrapolated_logits(model, tokenizer, guidance):
    # Dense, without a cache: log softmax(u + g (c − u)) of each sampled token behind the two prompts.
    for prompt, samples in zip(PROMPTS, guided(model, tokenizer, guidance).sample(PROMPTS, PARAMS, 3), strict=True):
        for sample in samples:
            n = len(sample.token_ids)
            with torch.no_grad():
                c, u = (
                    model(torch.tensor([[*before, *sample.token_ids]])).logits[0, -n - 1 : -1]
                    for before in (prompt, NOTHING)
                )
            logp = (u + guidance * (c - u)).log_softmax(-1)[range(n), list(sample.token_ids)]
            torch.testing.assert_close(torch.tensor(sample.logp), logp, rtol=0, atol=2e-5)


def test_greedy_guidance_takes_the_token_that_the_prompt_raises_most(model, tokenizer):
    # u + g (c − u) at g = 1000 is ruled by c − u.
    params = SamplingParams(max_new_tokens=1, temperature=0.0, seed=0)
    found = guided(model, tokenizer, 1000.0).sample(PROMPTS, params, 1)
    with torch.no_grad():
        without = model(torch.tensor([NOTHING])).logits[0, -1]
        raised = [int((model(torch.tensor([p])).logits[0, -1] - without).argmax()) for p in PROMPTS]
    assert [sample.token_ids[0] for (sample,) in found] == raised


def test_batches_do_not_change_guided_samples(model, tokenizer):
    whole, one_by_one = (guided(model, tokenizer, 2.0, batch_size=n).sample(PROMPTS, PARAMS, 4) for n in (12, 1))
    assert [[s.token_ids for s in row] for row in whole] == [[s.token_ids for s in row] for row in one_by_one]


def test_an_unconditional_prompt_without_tokens_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="the unconditional prompt has no tokens"):
        GuidedEngine(model, tokenizer, unconditional=[], guidance=2.0, batch_size=4, device="cpu")
