"""TransformersEngine against model.generate, dense recomputation and itself in other batch shapes."""

from __future__ import annotations

import pytest
import torch

from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason
from tests.rollout.tiny_engines import model_of

SAMPLED = SamplingParams(max_new_tokens=24, temperature=1.0, seed=11)
GREEDY = SamplingParams(max_new_tokens=24, temperature=0.0, seed=0)


def ragged_prompts(tokenizer, n: int = 7) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 9, (n,), generator=generator).tolist()
    return [torch.randint(3, len(tokenizer), (length,), generator=generator).tolist() for length in lengths]


def make_engine(model, tokenizer, batch_size: int = 4) -> TransformersEngine:
    return TransformersEngine(model, tokenizer, batch_size=batch_size, device="cpu")


def always(model, cycle: dict[int, int]) -> None:
    """Set the weights so that token a is followed by cycle[a] with all but e^-280 of the probability."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name:
                parameter.zero_()
        embedding = torch.eye(model.config.vocab_size, model.config.hidden_size)
        model.get_input_embeddings().weight.copy_(embedding)
        head = torch.zeros(model.config.vocab_size, model.config.hidden_size)
        for token, successor in cycle.items():
            head[successor, token] = 50.0  # the norm makes the unit vector's entry sqrt(32): logit 283
        model.get_output_embeddings().weight.copy_(head)


def test_greedy_equals_generate_token_by_token(model, tokenizer):
    prompts = ragged_prompts(tokenizer, n=20)
    found = make_engine(model, tokenizer, batch_size=8).sample(prompts, GREEDY, 1)
    n_stopped = 0
    for prompt, (sample,) in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0
        )
        assert list(sample.token_ids) == expected[0, len(prompt) :].tolist()
        is_ended = sample.token_ids[-1] == tokenizer.eos_token_id
        assert sample.finish_reason is (FinishReason.STOP if is_ended else FinishReason.LENGTH)
        n_stopped += is_ended
    assert 0 < n_stopped < 20  # both ways to end were seen, so rows left the batch while others went on


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logp_equals_dense_recomputation_at_temperature_one(model, tokenizer, temperature):
    params = SamplingParams(max_new_tokens=24, temperature=temperature, seed=2, top_k=5)
    prompts = ragged_prompts(tokenizer)
    for prompt, samples in zip(prompts, make_engine(model, tokenizer).sample(prompts, params, 3), strict=True):
        for sample in samples:
            ids = torch.tensor([[*prompt, *sample.token_ids]])
            with torch.no_grad():
                log_pi = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
            chosen = torch.tensor(sample.token_ids)
            expected = log_pi[len(prompt) - 1 : -1].gather(-1, chosen[:, None]).squeeze(-1)
            # float32 logits of size about 10 through a cache and padding: a few units of 1e-6.
            torch.testing.assert_close(torch.tensor(sample.logp).double(), expected, atol=2e-5, rtol=1e-5)


def assert_same_samples(first: list[list[Sample]], second: list[list[Sample]]) -> None:
    for left, right in zip(first, second, strict=True):
        for a, b in zip(left, right, strict=True):
            assert a.token_ids == b.token_ids
            assert (a.finish_reason, a.stop_string) == (b.finish_reason, b.stop_string)
            torch.testing.assert_close(torch.tensor(a.logp), torch.tensor(b.logp), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_samples_do_not_depend_on_the_batch_size(model, tokenizer, batch_size):
    prompts = ragged_prompts(tokenizer)
    expected = make_engine(model, tokenizer, batch_size=4).sample(prompts, SAMPLED, 3)
    assert_same_samples(make_engine(model, tokenizer, batch_size=batch_size).sample(prompts, SAMPLED, 3), expected)


def test_samples_of_a_named_stream_do_not_depend_on_the_other_prompts(model, tokenizer):
    prompts = ragged_prompts(tokenizer)
    streams = [2**63 + i for i in range(len(prompts))]
    engine = make_engine(model, tokenizer)
    together = engine.sample(prompts, SAMPLED, 2, streams=streams)
    apart = [
        engine.sample([prompt], SAMPLED, 2, streams=[stream])[0]
        for prompt, stream in zip(prompts, streams, strict=True)
    ]
    assert_same_samples(together, apart)


def test_n_samples_begin_with_the_samples_of_a_smaller_n_and_differ_among_themselves(model, tokenizer):
    prompts = ragged_prompts(tokenizer)
    engine = make_engine(model, tokenizer, batch_size=6)
    four = engine.sample(prompts, SAMPLED, 4)
    assert_same_samples([samples[:1] for samples in four], engine.sample(prompts, SAMPLED, 1))
    assert all(len({sample.token_ids for sample in samples}) > 1 for samples in four)


def test_another_seed_gives_other_samples_and_the_same_seed_the_same(model, tokenizer):
    prompts = ragged_prompts(tokenizer)
    engine = make_engine(model, tokenizer)
    other = SamplingParams(max_new_tokens=24, temperature=1.0, seed=12)
    first = engine.sample(prompts, SAMPLED, 2)
    assert engine.sample(prompts, SAMPLED, 2) == first
    assert engine.sample(prompts, other, 2) != first


def test_stop_string_over_several_tokens_ends_the_sample_with_its_tokens_kept(model, tokenizer):
    hash_, one, two = tokenizer.convert_tokens_to_ids(["#", "1", "2"])
    always(model, {one: hash_, hash_: two, two: one})  # 1#21#21#2...
    params = SamplingParams(max_new_tokens=20, temperature=0.0, seed=0, stop=("zz", "21#"))
    ((sample,),) = make_engine(model, tokenizer).sample([[one]], params, 1)
    assert tokenizer.decode(sample.token_ids) == "#21#"
    assert (sample.finish_reason, sample.stop_string) == (FinishReason.STOP, "21#")


def test_stop_string_inside_a_token_ends_the_sample_with_the_whole_token_kept(model, tokenizer):
    a, inside, one = tokenizer.convert_tokens_to_ids(["a", "bc\nd", "1"])
    always(model, {one: a, a: inside, inside: one})
    params = SamplingParams(max_new_tokens=20, temperature=0.0, seed=0, stop=("\n",))
    ((sample,),) = make_engine(model, tokenizer).sample([[one]], params, 1)
    assert tokenizer.decode(sample.token_ids) == "abc\nd"
    assert sample.stop_string == "\n"


def test_stop_string_in_the_prompt_or_across_its_end_does_not_stop(model, tokenizer):
    one, two = tokenizer.convert_tokens_to_ids(["1", "2"])
    always(model, {one: two, two: two})
    params = SamplingParams(max_new_tokens=5, temperature=0.0, seed=0, stop=("12",))
    ((sample,),) = make_engine(model, tokenizer).sample([[one, two, one]], params, 1)
    assert sample.token_ids == (two,) * 5
    assert (sample.finish_reason, sample.stop_string) == (FinishReason.LENGTH, None)


def test_eos_wins_over_the_budget_on_the_last_step_and_is_kept(model, tokenizer):
    one, two, eos = *tokenizer.convert_tokens_to_ids(["1", "2"]), tokenizer.eos_token_id
    always(model, {one: two, two: eos})
    params = SamplingParams(max_new_tokens=2, temperature=0.0, seed=0, stop=("zz",))
    ((sample,),) = make_engine(model, tokenizer).sample([[one]], params, 1)
    assert sample.token_ids == (two, eos)
    assert (sample.finish_reason, sample.stop_string) == (FinishReason.STOP, None)


def test_every_eos_of_the_generation_config_ends_a_sample(model, tokenizer):
    one, two, three = tokenizer.convert_tokens_to_ids(["1", "2", "3"])
    always(model, {one: two, two: three, three: one})
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, three]
    ((sample,),) = make_engine(model, tokenizer).sample([[one]], GREEDY, 1)
    assert (sample.token_ids, sample.finish_reason) == ((two, three), FinishReason.STOP)


def test_positions_of_the_model_bound_the_length(model, tokenizer):
    one = tokenizer.convert_tokens_to_ids("1")
    always(model, {one: one})
    params = SamplingParams(max_new_tokens=20, temperature=0.0, seed=0)
    long, short = make_engine(model, tokenizer).sample([[one] * 120, [one] * 3], params, 1)
    assert (len(long[0].token_ids), len(short[0].token_ids)) == (8, 20)  # 128 positions - 120
    assert long[0].finish_reason is FinishReason.LENGTH
    with pytest.raises(ValueError, match="prompt 0 has 128 tokens, the model 128 positions"):
        make_engine(model, tokenizer).sample([[one] * 128], params, 1)


def test_training_mode_comes_back_and_dropout_is_off_while_sampling(model, tokenizer):
    prompts = ragged_prompts(tokenizer)
    expected = make_engine(model, tokenizer).sample(prompts, SAMPLED, 1)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    assert make_engine(model, tokenizer).sample(prompts, SAMPLED, 1) == expected
    assert model.training


def test_model_trains_after_sampling_with_it(model, tokenizer):
    make_engine(model, tokenizer).sample(ragged_prompts(tokenizer), SAMPLED, 1)
    ids = torch.tensor([[3, 4, 5]])
    model(ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_empty_prompt_and_missing_streams_are_refused(model, tokenizer):
    engine = make_engine(model, tokenizer)
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        engine.sample([[3], []], SAMPLED, 1)
    with pytest.raises(ValueError, match="1 streams for 2 prompts"):
        engine.sample([[3], [4]], SAMPLED, 1, streams=[0])
    assert engine.sample([], SAMPLED, 1) == []


def test_row_that_ran_out_of_learned_positions_does_not_stop_the_others(tokenizer):
    model = model_of("gpt2", torch.float32, len(tokenizer))
    params = SamplingParams(max_new_tokens=20, temperature=0.0, seed=0)
    # One of 20 rows ends after 8 of its tokens: fewer than an eighth, so it stays and is fed on.
    found = make_engine(model, tokenizer, batch_size=32).sample([[3] * 120, *([[3]] * 19)], params, 1)
    assert [len(samples[0].token_ids) for samples in found] == [8] + [20] * 19
