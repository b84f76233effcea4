"""Digit strings: the target by hand, the optimum as a zero of both residuals, the learner and its files."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from posttrain.evaluation.study_figures.strings import expected_distinct_at_target, n_solutions
from posttrain.evaluation.study_files import read_study
from posttrain.evaluation.study_report import write_study_report
from posttrain.losses import oreo_response, oreo_token, total, trajectory_balance
from posttrain.studies.strings.config import StringsConfig
from posttrain.studies.strings.learner import StringLearner
from posttrain.studies.strings.objectives import (
    OBJECTIVES,
    Method,
    StringBatch,
    flow_paths,
    token_values,
)
from posttrain.studies.strings.run import run_strings
from posttrain.studies.strings.task import SumTask

TASK = SumTask(n_digits=3, target_sum=13, floor=0.01)


def small(output: Path) -> StringsConfig:
    return StringsConfig(output, n_digits=2, target_sum=9, n_steps=6, batch_size=8, eval_steps=3, seeds=(0,))


def optimum_batch() -> StringBatch:
    """All strings at the exact optimum. Only the digits taken are read; the others share what is left."""
    logp, value = TASK.optimum()
    strings = TASK.strings()
    others = ((1 - logp.exp()) / 9).log()[..., None].repeat(1, 1, 10)
    logp_all = others.scatter(-1, strings[..., None], logp[..., None])
    log_z = TASK.reward(strings).sum().log()
    return StringBatch(strings, logp_all, TASK.reward(strings), value, log_z)


def random_batch(seed: int = 0) -> StringBatch:
    generator = torch.Generator().manual_seed(seed)
    strings = torch.randint(10, (40, 3), generator=generator)
    logits = torch.randn(40, 3, 10, dtype=torch.float64, generator=generator, requires_grad=True)
    value = torch.randn(40, 3, dtype=torch.float64, generator=generator)
    log_z = value[0, 0] + 3 * math.log(10)
    value[:, 0] = value[0, 0]  # all strings start from one prompt
    return StringBatch(strings, logits.log_softmax(-1), TASK.reward(strings), value, log_z)


def test_target_is_the_reward_over_its_sum():
    # Three digits with sum 13: C(15, 2) − 3·C(5, 2) = 75 of 1,000, so Z = 75 + 0.01·925 = 84.25.
    target, is_solution = TASK.target(), TASK.is_solved(TASK.strings())
    assert int(is_solution.sum()) == n_solutions(3, 13) == 75
    assert_close(target[is_solution], torch.full((75,), 1 / 84.25, dtype=torch.float64), rtol=1e-14, atol=0)
    assert_close(target.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-14, atol=0)
    # 200 draws of 75 solutions with 1/84.25 each: 75 (1 − (1 − 1/84.25)^200) = 68.11.
    assert expected_distinct_at_target(3, 13, 0.01, 200) == pytest.approx(68.11, abs=0.01)


def test_strings_stand_where_their_number_says():
    assert TASK.strings()[407].tolist() == [4, 0, 7]
    assert TASK.place(torch.tensor([[4, 0, 7], [9, 9, 9]])).tolist() == [407, 999]


def test_optimal_policy_samples_the_target_and_starts_at_the_mean_reward():
    # π*(x) is the product of its digits; V* of the empty string is log(84.25 / 1000).
    logp, value = TASK.optimum()
    assert_close(logp.sum(-1).exp(), TASK.target(), rtol=1e-12, atol=0)
    assert_close(value[:, 0], torch.full((1000,), math.log(0.08425), dtype=torch.float64), rtol=0, atol=1e-14)


def test_exact_optimum_is_a_zero_of_trajectory_balance_and_of_oreo():
    batch = optimum_batch()
    (balance,) = trajectory_balance(flow_paths(batch))
    assert balance.value.max() < 1e-24
    critic, policy, *_ = oreo_token(token_values(batch), beta=1.0, alpha=0.0)
    assert critic.value.max() < 1e-24
    assert policy.value.max() < 1e-24


def test_trajectory_balance_is_oreos_start_residual_with_log_z_shifted_by_the_reference():
    # log Z + Σ log π − log R with log Z = V(s_0) + k log 10, against V(s_0) − (log R − Σ log π/π_ref): the same
    # number, and the same gradient for the policy.
    batch = random_batch()
    (balance,) = trajectory_balance(flow_paths(batch))
    start = oreo_response(token_values(batch), beta=1.0, alpha=0.0)[1]
    assert_close(start.value.sum(-1), balance.value, rtol=1e-12, atol=0)
    by_balance, by_oreo = (
        torch.autograd.grad(term.value.sum(), batch.logp_all, retain_graph=True)[0] for term in (balance, start)
    )
    assert_close(by_oreo, by_balance, rtol=1e-12, atol=0)


def test_expected_soft_policy_gradient_is_half_that_of_trajectory_balance():
    # −∇V = ½ E[∇ L_TB] on own samples, whatever log Z; the expectation is over all ten strings of one digit. The
    # leave-one-out baseline of a full batch is replaced by its limit: a constant, which the expectation ignores.
    task = SumTask(n_digits=1, target_sum=4, floor=0.1)
    logits = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    strings, p = task.strings(), logits.softmax(-1)
    logp_all = logits.log_softmax(-1).expand(10, 1, 10)
    batch = StringBatch(strings, logp_all, task.reward(strings), torch.zeros(10, 1), torch.tensor(0.7).double())
    (balance,) = trajectory_balance(flow_paths(batch))
    (by_balance,) = torch.autograd.grad((p.detach() * balance.value).sum(), logits)
    soft_return = (p * (task.reward(strings).log() - p.log() - math.log(10))).sum()
    (ascent,) = torch.autograd.grad(soft_return, logits)
    assert_close(-ascent, by_balance / 2, rtol=0, atol=1e-14)


def test_soft_policy_gradient_rests_at_the_optimum_and_the_plain_one_does_not():
    # At π* log R − log π/π_ref is one number for all strings, so every advantage is 0. R itself still differs.
    batch = optimum_batch()
    logp_all = batch.logp_all.clone().requires_grad_()
    batch = replace(batch, logp_all=logp_all)
    counts = {"sequence": 1000}
    for method, is_at_rest in ((Method.SOFT_POLICY_GRADIENT, True), (Method.POLICY_GRADIENT, False)):
        (gradient,) = torch.autograd.grad(total(OBJECTIVES[method](batch), counts), logp_all)
        assert (gradient.abs().max() < 1e-12) == is_at_rest


def test_distribution_by_enumeration_is_the_product_of_conditionals(tmp_path):
    learner = StringLearner(small(tmp_path), Method.TRAJECTORY_BALANCE, seed=0)
    for step in range(4):
        learner.step(step)
    strings = learner.task.strings()
    logp = learner.policy(strings).gather(-1, strings[..., None])[..., 0].sum(-1)
    distribution = learner.policy.distribution(strings)
    assert_close(distribution, logp.double().exp(), rtol=1e-5, atol=0)  # float32 networks
    assert float(distribution.sum()) == pytest.approx(1, abs=1e-6)


def test_untrained_policy_is_uniform_and_its_measures_are_those_of_uniform_draws(tmp_path):
    # 10 of 100 strings have sum 9. Mass 0.1; 10 (1 − 0.99^200) = 8.660 expected; TV = ½ Σ |1/100 − R/Z| with
    # Z = 10.9: 10 (1/10.9 − 1/100) = 0.81743.
    measured = StringLearner(small(tmp_path), Method.GRPO, seed=1).evaluate()
    assert measured["solved"] == pytest.approx(0.1, abs=1e-6)
    assert measured["distinct"] == pytest.approx(8.660, abs=1e-3)
    assert measured["tv"] == pytest.approx(0.81743, abs=1e-5)
    assert measured["found"] == 0


@pytest.mark.parametrize("method", Method)
def test_learner_restored_goes_on_bit_for_bit(method, tmp_path):
    whole, stopped = (StringLearner(small(tmp_path), method, seed=0) for _ in range(2))
    for step in range(2):
        whole.step(step)
        stopped.step(step)
    fresh = StringLearner(small(tmp_path), method, seed=5)
    fresh.load_state(stopped.state())
    for step in range(2, 5):
        assert whole.step(step)["loss"].item() == fresh.step(step)["loss"].item()
    assert whole.evaluate() == fresh.evaluate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"floor": 0.0}, "floor is 0.0: log R needs it above 0"),
        ({"n_digits": 6}, "n_digits is 6, needs 1 to 5: all strings are enumerated"),
        ({"target_sum": 28}, "target_sum is 28: 3 digits add up to 0 to 27"),
        ({"batch_size": 1}, "baselines compare a string with others, so 2 or more"),
        ({"seeds": ()}, "needed one or more of each"),
    ],
)
def test_bad_settings_are_refused_with_their_fix(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        StringsConfig(tmp_path, **settings)


def test_study_trains_each_method_once_and_draws(tmp_path, capsys):
    config = replace(small(tmp_path / "run"), methods=(Method.TRAJECTORY_BALANCE, Method.OREO), n_processes=1)
    run_strings(config)
    run_strings(config)
    run = read_study(config.output_dir)
    assert run.methods() == ("trajectory_balance", "oreo")
    assert [row["samples"] for row in run.rows] == [48.0, 48.0]
    assert [step for step, _ in run.curves["oreo"][0]["eval_tv"]] == [3, 6]
    assert "| trajectory_balance | 1 | 48 |" in capsys.readouterr().out
    assert "<img" in write_study_report(config.output_dir, tmp_path / "report").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method.TRAJECTORY_BALANCE, Method.OREO, Method.SOFT_POLICY_GRADIENT])
def test_methods_whose_target_is_the_reward_come_near_it(method, tmp_path):
    # Two digits with sum 9: from 0.82 of the uniform policy to below 0.15.
    config = StringsConfig(tmp_path, n_digits=2, target_sum=9, n_steps=500, batch_size=64)
    learner = StringLearner(config, method, seed=0)
    for step in range(config.n_steps):
        learner.step(step)
    assert learner.evaluate()["tv"] < 0.15
