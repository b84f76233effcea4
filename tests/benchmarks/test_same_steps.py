"""What the benchmarks compare computes the same: a ratio of two different computations would mean nothing."""

import math
from dataclasses import replace

import pytest

from benchmarks.dpo_step import run as dpo_run
from benchmarks.dpo_step import steps as dpo_steps
from benchmarks.logprob_core import methods
from benchmarks.oreo_step import run as oreo_run
from benchmarks.packing import steps as packing_steps
from benchmarks.search_cache import run as search_run
from benchmarks.search_cache import searches


@pytest.mark.parametrize("has_kl", [False, True])
@pytest.mark.parametrize("is_head_trained", [True, False])
def test_methods_of_the_log_prob_benchmark_agree(is_head_trained, has_kl):
    # float32 sums over 1,000 tokens and 150 positions, two chunks of them for the checkpointed method
    case = methods.Case(1000, 16, 150, is_head_trained, has_kl)
    inputs = methods.make_inputs(case)
    results = {name: methods.step(name, inputs, has_kl=has_kl) for name in methods.methods_of(case)}
    for result in results.values():
        assert result == pytest.approx(results["dense"], rel=1e-5)


@pytest.mark.slow
def test_our_dpo_steps_follow_those_of_trl(tmp_path):
    # From loss log 2 at the reference; AdamW divides by a moving root mean square, which magnifies rounding: 1e-4.
    case = dpo_steps.Case(n_vocabulary=512, width=64, n_layers=1, n_pairs=2, is_bf16=False)
    steps = {name: dpo_run.build(name, case, tmp_path) for name in dpo_run.STEPS}
    first = {name: step() for name, step in steps.items()}
    for result in first.values():
        assert result["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert result["grad_norm"] == pytest.approx(first["trl, defaults"]["grad_norm"], rel=1e-4)
    for _ in range(3):
        last = {name: step() for name, step in steps.items()}
    assert last["trl, defaults"]["loss"] < math.log(2) - 0.01
    for result in last.values():
        assert result == pytest.approx(last["trl, defaults"], rel=1e-4)


def test_packed_oreo_steps_follow_padded_ones():
    # float32; AdamW at a learning rate of 1e-6 keeps rounding from growing within three steps.
    case = packing_steps.Case(n_vocabulary=64, width=192, n_layers=1, n_rows=4)
    padded, packed = (packing_steps.oreo_step(case, is_packed=is_packed) for is_packed in (False, True))
    for _ in range(3):
        assert packed() == pytest.approx(padded(), rel=1e-5)


def test_our_oreo_steps_follow_those_of_the_reference_algorithm():
    # float32 and a learning rate of 1e-6, as above. The gradient norms hold the terms apart that one loss adds up.
    case = packing_steps.Case(n_vocabulary=64, width=192, n_layers=1, n_rows=4)
    steps = {name: oreo_run.build(name, case) for name in oreo_run.STEPS}
    for _ in range(3):
        results = {name: step() for name, step in steps.items()}
        for result in results.values():
            assert result == pytest.approx(results["reference algorithm"], rel=1e-5)


@pytest.mark.slow
def test_searches_that_remember_grow_the_trees_of_those_that_read_everything_anew(monkeypatch):
    monkeypatch.setattr(searches, "PARAMS", replace(searches.PARAMS, width=2, expansions=2, max_steps=4))
    networks = searches.make_networks(searches.Case(n_vocabulary=100, width=192, n_layers=1, n_problems=1))
    found = {name: searches.search(name, networks)() for name in search_run.SEARCHES}
    plain = found["re-encoded"]
    for result in found.values():
        assert result["trees"] == plain["trees"]
        assert result["n_generated_tokens"] == plain["n_generated_tokens"]
    # The value model reads the prompt and each step once, or less where steps are alike; on a shared trunk one token
    # of each candidate, of which the first round has 2 and the three others 4.
    assert found["value cache"]["n_value_tokens"] <= searches.N_PROMPT + plain["n_generated_tokens"]
    assert found["shared trunk"]["n_value_tokens"] <= 2 + 3 * 4
    for kind in ("re-encoded", "value cache"):
        scored = searches.scoring(kind, networks)()
        assert scored["n_value_tokens"] == found[kind]["n_value_tokens"]
        assert scored["mean_value"] == pytest.approx(
            searches.scoring("re-encoded", networks)()["mean_value"], abs=1e-6
        )
