"""VllmEngine on a real vLLM against TransformersEngine on the same folder of weights, in a process of their own."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.rollout.vllm_engine import VllmEngine, request_seed
from tests.vllm_process import results_of, skip_without_vllm

# Both engines run float32 with logits below 10, by kernels that sum in other orders: some units of 1e-6 were seen.
# Two tokens nearer to each other than this may come out in either order.
NOISE = 1e-4


def test_request_seeds_are_63_bits_and_differ_by_seed_stream_and_sample():
    keys = [(seed, stream, sample) for seed in (0, 1) for stream in (0, 1, 2**64 - 1) for sample in (0, 1)]
    seeds = {request_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_missing_vllm_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # makes `import vllm` fail
    with pytest.raises(ImportError, match=r"pip install 'posttrain\[vllm\]'"):
        VllmEngine("anywhere", dtype="float32")


@pytest.fixture(scope="module")
def results(tokenizer, tmp_path_factory) -> dict:
    skip_without_vllm()
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM's CPU attention has
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    module = "tests.rollout.vllm_against_transformers"
    return results_of(module, folder / "results.json", str(folder), "float32", timeout=560)


def real_vllm(test):
    return pytest.mark.slow(pytest.mark.vllm(pytest.mark.timeout(600)(test)))


def samples_of(results: dict, case: str) -> list[tuple[dict, list[list[float]]]]:
    """vLLM's samples of a case, each with log π of the whole vocabulary at its tokens, by transformers."""
    found, dense = results["vllm"][case], results["dense"][case]
    return [pair for row, scores in zip(found, dense, strict=True) for pair in zip(row, scores, strict=True)]


@real_vllm
def test_greedy_tokens_are_equal_or_first_differ_between_tokens_within_numeric_noise(results):
    ours = [sample for (sample,) in results["transformers"]["greedy"]]
    theirs = samples_of(results, "greedy")
    for expected, (found, dense) in zip(ours, theirs, strict=True):
        left, right = expected["token_ids"], found["token_ids"]
        at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        if at is None:
            assert left == right
        else:
            assert abs(dense[at][left[at]] - dense[at][right[at]]) < NOISE
    n_equal = sum(
        expected["token_ids"] == found["token_ids"] for expected, (found, _) in zip(ours, theirs, strict=True)
    )
    assert n_equal > len(ours) / 2  # a difference is an exception


@real_vllm
@pytest.mark.parametrize("case", ["greedy", "stop", "sampled"])
def test_logp_is_at_temperature_one_over_the_whole_vocabulary(results, case):
    for sample, dense in samples_of(results, case):
        expected = [scores[token] for scores, token in zip(dense, sample["token_ids"], strict=True)]
        assert sample["logp"] == pytest.approx(expected, abs=NOISE)


@real_vllm
def test_stop_strings_keep_their_tokens_and_finish_reasons_map(results, tokenizer):
    stops = ("4", "\n", "ab")
    n_by_ending = dict.fromkeys((*stops, "eos", "length"), 0)
    for sample, _ in samples_of(results, "stop"):
        text, before = tokenizer.decode(sample["token_ids"]), tokenizer.decode(sample["token_ids"][:-1])
        assert not any(stop in before for stop in stops)
        is_eos = sample["token_ids"][-1] == tokenizer.eos_token_id
        if sample["stop_string"] is not None:
            assert sample["finish_reason"] == "stop"
            assert sample["stop_string"] in text
        else:
            assert sample["finish_reason"] == ("stop" if is_eos else "length")
            assert is_eos or len(sample["token_ids"]) == 60
        n_by_ending[sample["stop_string"] or ("eos" if is_eos else "length")] += 1
    assert all(n_by_ending[stop] for stop in stops) and n_by_ending["eos"]  # each was seen


@real_vllm
def test_samples_depend_on_seed_and_stream_alone_and_stay_in_the_top_k(results):
    assert results["vllm"]["sampled"] == results["vllm"]["sampled_again"]
    first = [row[0]["token_ids"] for row in results["vllm"]["sampled"]]
    assert first == [sample["token_ids"] for sample in results["vllm_one_by_one"]]
    assert all(a["token_ids"] != b["token_ids"] for a, b in results["vllm"]["sampled"])
    for sample, dense in samples_of(results, "sampled"):
        for scores, token in zip(dense, sample["token_ids"], strict=True):
            assert sum(score > scores[token] + NOISE for score in scores) < 20  # top_k of the case


@real_vllm
def test_samples_are_the_same_when_prompts_do_not_fit_into_one_batch(results):
    crowd, by_tens = results["vllm_crowd"], results["vllm_crowd_by_tens"]
    assert len(crowd) == len(by_tens) == 60
    # Other batches sum in other orders, so a token within noise of the next may differ, and then all after it.
    assert sum(a == b for a, b in zip(crowd, by_tens, strict=True)) >= 57
