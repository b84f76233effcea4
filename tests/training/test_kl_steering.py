"""`kl_target` of `posttrain oreo`: the coefficient follows the exact KL of each step, through splits and resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.losses import Term, oreo_token
from posttrain.schema import EncodedTrajectory
from posttrain.training.kl_steering import KlSteering
from posttrain.training.kl_target import KlTarget
from posttrain.training.trainer import ObjectiveTrainer
from tests.training.tiny_oreo import N_TOKENS, step_logs, tiny_config, tiny_trainer, trajectories
from tests.tree_mdp import Paths, fit, random_tables, read_tables, weighted_total

TARGET = {"kl_target": 0.2, "kl_target_rate": 0.05, "alpha": 0.1}


def trained(policy: Path, folder: Path, n_rows: int = 8, **changes: Any) -> ObjectiveTrainer:
    trainer = tiny_trainer(tiny_config(policy, folder, **{**TARGET, **changes}), trajectories(n_rows))
    trainer.train()
    return trainer


def assert_follows(logs: list[dict[str, float]], first: int = 0) -> None:
    """log c rises by 0.05 (KL / 0.2 − 1) with the KL of each step from the step `first` on; float32 where logged."""
    expected = 0.1
    for step, log in enumerate(logs):
        assert math.isclose(log["kl_coefficient"], expected, rel_tol=1e-6), step
        if step >= first:
            expected *= math.exp(0.05 * (log["loss/kl_ref"] / 0.2 - 1))


@pytest.mark.parametrize(("batch_size", "n_micro_batches"), [(8, 1), (3, 3)])
def test_coefficient_follows_the_kl_of_each_step_however_it_is_split(
    policy_folder: Path, tmp_path: Path, batch_size: int, n_micro_batches: int
) -> None:
    # 8 rows are a step: at once, or as 3 + 3 + 2, whose mean of means would be another KL.
    split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": n_micro_batches}
    logs = step_logs(trained(policy_folder, tmp_path, max_steps=6, **split))
    assert logs[0]["loss/kl_ref"] == 0.0  # policy = reference: the first factor is e^−0.05
    assert logs[-1]["loss/kl_ref"] > 0.2  # and later ones are above 1
    assert_follows(logs)


def test_loss_and_effective_temperature_use_the_coefficient_of_their_step(policy_folder: Path, tmp_path: Path) -> None:
    for log in step_logs(trained(policy_folder, tmp_path, max_steps=4)):
        coefficient = log["kl_coefficient"]
        expected = log["loss/value"] + log["loss/policy"] + coefficient * log["loss/kl_ref"]
        assert math.isclose(log["loss"], expected, rel_tol=1e-6)
        assert math.isclose(log["beta_eff"], 0.3 + coefficient / (2 * 0.3), rel_tol=1e-6)
    assert coefficient != 0.1


def test_coefficient_rests_while_the_value_warms_up(policy_folder: Path, tmp_path: Path) -> None:
    # The policy is the reference then, and a KL of 0 for want of movement is no reason to loosen the coefficient.
    logs = step_logs(trained(policy_folder, tmp_path, max_steps=6, value_warmup_steps=3))
    assert [log["kl_coefficient"] for log in logs[:4]] == [logs[0]["kl_coefficient"]] * 4
    assert_follows(logs, first=3)


def test_resumed_run_is_bit_equal_when_a_target_steers_it(policy_folder: Path, tmp_path: Path) -> None:
    # A log over steps 3 and 4, and a checkpoint between the two.
    settings = {"max_steps": 6, "logging_steps": 2, "save_strategy": "steps", "save_steps": 3}
    unbroken = trained(policy_folder, tmp_path / "run", n_rows=10, **settings)
    config = tiny_config(policy_folder, tmp_path / "resumed", **{**TARGET, **settings})
    resumed = tiny_trainer(config, trajectories(10))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert step_logs(resumed) == step_logs(unbroken)
    first, *_, last = (log["kl_coefficient"] for log in step_logs(resumed))
    assert abs(last - first) > 0.005  # it moved on both sides of the checkpoint
    progress = "checkpoint-6/progress_0.json"  # with the coefficient in float64
    assert "log_coefficient of kl_ref" in (tmp_path / "run" / progress).read_text()
    assert (tmp_path / "resumed" / progress).read_text() == (tmp_path / "run" / progress).read_text()
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_target_that_a_resumed_run_is_given_starts_at_its_alpha(policy_folder: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3}
    trained(policy_folder, tmp_path, **{**settings, "kl_target": None})
    resumed = tiny_trainer(tiny_config(policy_folder, tmp_path, **{**TARGET, **settings}), trajectories(8))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    [*_, last] = step_logs(resumed)
    assert math.isclose(last["kl_coefficient"], 0.1, rel_tol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.02, 5.0])
def test_kl_arrives_at_its_target_from_both_sides(policy_folder: Path, tmp_path: Path, start: float) -> None:
    # Every token is the answer of one row, with a reward of its own. The coefficient is known from tables: fitted with
    # it as a fixed alpha, a softmax over 40 free logits must have the KL that was asked for.
    outcome = torch.randn(N_TOKENS, generator=torch.Generator().manual_seed(0))
    rows = [EncodedTrajectory(a, (4, a), (False, True), (False, True), (0.0, outcome[a].item())) for a in range(40)]
    settings = {"policy_learning_rate": 3e-3, "value_learning_rate": 1e-2, "per_device_train_batch_size": 40}
    config = tiny_config(
        policy_folder, tmp_path, max_steps=160, kl_target=0.2, kl_target_rate=0.2, alpha=start, **settings
    )
    trainer = tiny_trainer(config, rows)
    trainer.train()
    logs = step_logs(trainer)
    assert min(log["loss/kl_ref"] for log in logs[-20:]) > 0.195
    assert max(log["loss/kl_ref"] for log in logs[-20:]) < 0.205
    with torch.no_grad():
        ref_logp = trainer.model.reference(torch.tensor([[4]])).logits[0].double().log_softmax(-1)
    fitted = kl_of_fitted_tables(outcome.double(), ref_logp, alpha=logs[-1]["kl_coefficient"])
    assert fitted == pytest.approx(0.2, rel=0.02)


def kl_of_fitted_tables(outcome: Tensor, ref_logp: Tensor, *, alpha: float) -> float:
    n = len(outcome)
    here = torch.zeros(n, 1, dtype=torch.int64)
    paths = Paths(here, torch.arange(n)[:, None], torch.ones(n, 1, dtype=torch.bool), outcome[:, None])
    logits, value = ref_logp.clone(), random_tables(1, 0)[1]
    weight = torch.full((n,), 1 / n, dtype=torch.float64)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(paths, logits.log_softmax(-1), ref_logp, value)
        return weighted_total(oreo_token(v, beta=0.3, alpha=alpha), weight)

    fit(loss, logits, value)
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - ref_logp)).sum().item()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_target": 0.0}, "kl_target is 0.0, needs a finite number above 0"),
        ({"kl_target": math.nan}, "kl_target is nan, needs a finite number above 0"),
        ({"kl_target_rate": -1.0}, "kl_target_rate is -1.0, needs a finite number above 0"),
        ({"alpha": 0.0}, "alpha is 0, but with kl_target it is where the weight of the KL starts"),
    ],
)
def test_settings_that_cannot_steer_are_refused(
    policy_folder: Path, tmp_path: Path, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(policy_folder, tmp_path, **{**TARGET, **changes})


def test_target_named_after_no_term_is_refused_in_the_first_micro_batch() -> None:
    steering = KlSteering({"kl": KlTarget(target=0.1, coefficient=0.1, rate=1.0)})
    terms = [Term(name, torch.zeros(2), "sequence") for name in ("value", "kl_ref")]
    with pytest.raises(ValueError, match="kl_targets follow kl, but the terms of the objective are value, kl_ref"):
        steering.add_terms(terms)
