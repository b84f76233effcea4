"""VllmBackend on two real engines of vLLM, in a process of their own: what many tasks at once get from it."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.serve.vllm_backend import VllmNetwork
from tests.rollout.conftest import tokenizer as tokenizer
from tests.vllm_networks import write_policy, write_value_model
from tests.vllm_process import IN_PROCESS, results_of, skip_without_vllm

ATOL = 2e-5  # of values in float32, derived in tests/search/test_vllm_scorer.py


def test_network_is_called_by_the_name_of_its_folder_or_by_its_hub_id(tmp_path, monkeypatch):
    (tmp_path / "run" / "policy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run" / "policy")
    assert VllmNetwork(tmp_path / "run" / "policy", memory_share=0.5).name == "policy"
    assert VllmNetwork(".", memory_share=0.5).name == "policy"
    assert VllmNetwork("owner/model", memory_share=0.5).name == "owner/model"


@pytest.fixture(scope="module")
def results(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    skip_without_vllm()
    folder = tmp_path_factory.mktemp("networks")
    policy, value = write_policy(folder / "policy", tokenizer), write_value_model(folder / "value", tokenizer)
    module = "tests.serve.vllm_backend_run"
    return results_of(module, folder / "results.json", str(policy), str(value), timeout=560, env=IN_PROCESS)


def real_vllm(test):
    return pytest.mark.slow(pytest.mark.vllm(pytest.mark.timeout(600)(test)))


@real_vllm
def test_samples_are_those_of_the_vllm_engine_for_the_same_seed_and_streams(results):
    expected = [sample for row in results["by_vllm_engine"] for sample in row]
    found = [sample for row in results["sampled"]["samples"] for sample in row]
    is_equal = [a["token_ids"] == b["token_ids"] for a, b in zip(found, expected, strict=True)]
    # The engines batch the requests otherwise and so round otherwise: a draw within 1e-6 of the next token may differ.
    assert sum(is_equal) >= len(expected) - 1
    for a, b, same in zip(found, expected, is_equal, strict=True):
        if same:
            assert a["logp"] == pytest.approx(b["logp"], abs=1e-4)
            assert (a["finish_reason"], a["stop_string"]) == (b["finish_reason"], b["stop_string"])
    assert len({sample["finish_reason"] for sample in expected}) == 2  # some stopped, some ran out


@real_vllm
def test_each_token_arrives_once_in_order_with_its_log_probability(results):
    n_interleaved = 0
    for row, arrived in zip(results["sampled"]["samples"], results["sampled"]["arrived"], strict=True):
        for place, sample in enumerate(row):
            tokens = [(token, logp) for at, token, logp, _ in arrived if at == place]
            assert tokens == list(zip(sample["token_ids"], sample["logp"], strict=True))
        places = [at for at, *_ in arrived]
        assert all(top == [] for *_, top in arrived)  # nobody asked
        n_interleaved += places.index(1) < len(row[0]["token_ids"])
    assert n_interleaved >= len(results["sampled"]["samples"]) / 2  # the second began before the first ended


@real_vllm
def test_likeliest_tokens_are_those_of_transformers_at_temperature_1_over_the_whole_vocabulary(results):
    sample = results["sampled"]["with_top"]
    assert results["sampled"]["told"] == sample["top"]
    for found, expected in zip(sample["top"], results["likeliest"], strict=True):
        # Kernels round otherwise, and so may the order of two tokens that are that close.
        assert [logp for _, logp in found] == pytest.approx([logp for _, logp in expected], abs=1e-4)
        assert len({token_id for token_id, _ in found} & {token_id for token_id, _ in expected}) >= 3
    for at, token_id, logp in zip(sample["top"], sample["token_ids"], sample["logp"], strict=True):
        assert dict(map(tuple, at)).get(token_id, logp) == logp


@real_vllm
def test_ten_searches_at_once_take_the_steps_of_about_one(results):
    found = results["searches"]
    # One after another they would take ten times the steps of one. Side by side they take as many as the longest, and
    # some more where one waits for values while another samples.
    assert found["n_steps_together"] < 3 * found["n_steps_alone"]
    assert len(set(map(tuple, found["together"]))) == 10


@real_vllm
def test_search_finds_the_same_among_others_as_alone(results):
    assert results["searches"]["together"][0] == results["searches"]["alone"]


@real_vllm
def test_cancelled_requests_leave_their_rows_before_they_are_done(results):
    found = results["cancelled"]
    longest = max(found["whole_lengths"])
    assert longest > 100 and found["n_running_before"] == 8  # there was something to cancel
    assert found["n_cancelled"] == 13
    assert found["n_running_after"] == 0
    # Five tokens take five steps, beside one or two that were under way. A row left behind would be sampled on and on.
    assert found["n_steps_of_next"] < 15


@real_vllm
def test_values_are_those_of_transformers_at_the_last_token_and_at_every_one(results):
    found = results["values"]
    assert found["score"] == pytest.approx(found["score_expected"], abs=ATOL)
    assert found["score_all"] == pytest.approx(found["score_all_expected"], abs=ATOL)
    assert found["n_read_by_score_all"] == 90  # every token again: no hidden state comes with a cached one


@real_vllm
def test_value_engine_reuses_prefixes_of_searches(results):
    found = results["searches"]
    # A search scores candidates of 13, 23, ... 63 tokens when no step ends early. The last three rounds reuse a block
    # of 32 tokens: 96 of 228, which is 0.7 times those read. Steps that end early leave fewer whole blocks.
    assert found["n_value_tokens_cached"] > 0.3 * found["n_value_tokens_read"]
    assert found["n_value_tokens_of_searches"] == found["n_value_tokens_read"]  # what each call was told adds up


@real_vllm
def test_requests_that_cannot_be_served_are_refused_with_the_reason(results):
    assert "needs 1 to 255" in results["refused"]["empty_prompt"]
    assert "has 256 tokens" in results["refused"]["full_prompt"]
    assert "empty sequence" in results["refused"]["empty_sequence"]


@real_vllm
def test_closing_cancels_what_is_in_flight(results):
    assert results["is_cancelled_by_close"]
    assert results["is_alive"] == [True, False]


@real_vllm
def test_networks_are_named_after_their_folders(results):
    assert results["names"] == ["policy", "value"]
