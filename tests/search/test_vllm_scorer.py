"""VllmScorer on a real vLLM against ReencodingScorer on the same value model, in a process of their own."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from posttrain.search.vllm_scorer import VllmScorer, finite_value
from tests.rollout.conftest import tokenizer as tokenizer
from tests.vllm_networks import write_policy, write_value_model
from tests.vllm_process import IN_PROCESS, results_of, skip_without_vllm

BLOCK = 32  # tokens of a cache block on a CPU
# V = w·h, |w| = 1, and h leaves the last norm with a root mean square of 1. Rounding errors of h are independent
# of w, so an error of e in each element is an error of e in V.
# A matrix product of inner size n rounds by about √n·u, u = 2^-24: 7e-7 for n = 128. Ten on the way to h, in both
# implementations: √20 · 7e-7 = 3e-6. bfloat16 rounds what each operation returns by 2^-9/√3 = 1.1e-3 in the root mean
# square, about 25 operations: √50 · 1.1e-3 = 8e-3. The tolerances are six times that.
ATOL = {"float32": 2e-5, "bfloat16": 0.05}


def test_value_that_is_not_finite_is_an_error_that_names_the_cause():
    with pytest.raises(ValueError, match=r"V = nan.*had diverged"):
        finite_value(float("nan"))


def test_missing_vllm_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # makes `import vllm` fail
    with pytest.raises(ImportError, match=r"pip install 'posttrain\[vllm\]'"):
        VllmScorer("anywhere", dtype="float32", max_model_len=64, memory_share=0.3)


@pytest.fixture(scope="module")
def results(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    skip_without_vllm()
    folder = tmp_path_factory.mktemp("networks")
    paths = [
        write_policy(folder / "policy", tokenizer),
        write_value_model(folder / "value", tokenizer),
        write_value_model(folder / "scaled_value", tokenizer, head_scale=1 + 2**-10),
    ]
    module = "tests.search.vllm_values"
    return results_of(module, folder / "results.json", *map(str, paths), timeout=560, env=IN_PROCESS)


def real_vllm(test):
    return pytest.mark.slow(pytest.mark.vllm(pytest.mark.timeout(600)(test)))


@real_vllm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_agree_with_transformers_in_the_same_dtype(results, dtype):
    found, expected = results[dtype]["vllm"], results[dtype]["transformers"]
    assert found == pytest.approx(expected, abs=ATOL[dtype])
    assert max(expected) - min(expected) > 2  # 40 values with a standard deviation of 1: not one constant


@real_vllm
def test_bfloat16_is_as_near_to_the_float32_values_as_transformers_in_bfloat16_is(results):
    exact = torch.tensor(results["float32"]["transformers"])
    error = {
        name: (torch.tensor(results["bfloat16"][name]) - exact).square().mean().sqrt()
        for name in ("transformers", "vllm")
    }
    assert error["vllm"] < 1.5 * error["transformers"]  # two draws of 40 errors of one size


@real_vllm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_read_through_the_cache_are_the_values_read_whole(results, dtype):
    assert results[dtype]["vllm_again"] == pytest.approx(results[dtype]["vllm"], abs=ATOL[dtype])


@real_vllm
def test_head_is_applied_in_float32_under_a_bfloat16_trunk(results):
    # bfloat16 has 7 bits after the leading one, so (1 + 2^-10)/8 would be rounded to 1/8 and both folders would give
    # one V. The trunks are the same bits; a sum of 64 products in float32 is off by at most 64 · 2^-24 · |w| |h| =
    # 64 · 2^-24 · 8 = 3e-5.
    value, scaled = torch.tensor(results["bfloat16"]["vllm"]), torch.tensor(results["scaled_head"])
    torch.testing.assert_close(scaled - value, value * 2**-10, rtol=0, atol=3e-5)
    assert value.abs().max() * 2**-10 > 1e-3


@real_vllm
def test_beams_are_those_of_the_reencoding_scorer_in_float32(results):
    for found, expected in zip(results["trees"], results["oracle_trees"], strict=True):
        assert [(node["parent"], node["token_ids"], node["state"]) for node in found["nodes"]] == [
            (node["parent"], node["token_ids"], node["state"]) for node in expected["nodes"]
        ]
        assert [node["value"] for node in found["nodes"]] == pytest.approx(
            [node["value"] for node in expected["nodes"]], abs=ATOL["float32"]
        )
        assert any(node["state"] == "pruned" for node in found["nodes"])  # the values chose


@real_vllm
def test_prefixes_are_reused_block_by_block(results):
    lengths = results["lengths"]
    for dtype in ("float32", "bfloat16"):
        counts = results[dtype]
        assert counts["n_tokens_read"] + counts["n_tokens_cached"] == 2 * sum(lengths)  # each prefix was scored twice
        # The second time every full block was there, but for one that holds the last token.
        assert counts["n_tokens_cached"] >= sum((n - 1) // BLOCK * BLOCK for n in lengths)


@real_vllm
def test_children_of_a_search_reuse_the_blocks_of_their_parent(results):
    n_tokens = n_reusable = 0
    for tree in results["trees"]:
        length = [len(tree["prompt"])]
        for node in tree["nodes"][1:]:
            parent = length[node["parent"]]
            length.append(parent + len(node["token_ids"]))
            n_scored = length[-1] - (node["state"] == "answer")
            n_tokens += n_scored
            # The root itself is never scored; its blocks come from the first candidates.
            n_reusable += min(parent, n_scored - 1) // BLOCK * BLOCK if node["parent"] else 0
    read, cached = results["tree_tokens"]["read"], results["tree_tokens"]["cached"]
    assert read + cached == n_tokens
    assert cached >= n_reusable > n_tokens / 2


@real_vllm
def test_what_cannot_be_scored_is_refused_with_the_reason(results):
    refusals = results["refusals"]
    assert "LlamaForCausalLM" in refusals["policy"] and "Is this a policy?" in refusals["policy"]
    assert "empty sequence" in refusals["empty"]
    assert "257 tokens" in refusals["too_long"] and "max_model_len" in refusals["too_long"]
