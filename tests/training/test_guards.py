"""NaN and Inf stop the run in the step that made them, name the rows, and leave the weights alone."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from posttrain.losses import oreo_token
from posttrain.training.guards import NonFiniteError, load_fault
from posttrain.training.oreo import forward
from posttrain.training.trainer import ObjectiveTrainer
from tests.training.tiny_oreo import tiny_config, tiny_trainer, trajectories

BAD_ROW = 5


@pytest.fixture
def poisoned(policy_folder: Path, tmp_path: Path) -> ObjectiveTrainer:
    config = tiny_config(
        policy_folder, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4
    )
    return tiny_trainer(config, trajectories(16, poisoned_row=BAD_ROW))


def test_a_row_that_is_not_finite_stops_the_step_and_is_named(poisoned: ObjectiveTrainer, tmp_path: Path) -> None:
    snapshots: list[dict[str, torch.Tensor]] = []
    _snapshot_before_each_forward(poisoned, snapshots)
    with pytest.raises(NonFiniteError) as stopped:
        poisoned.train()
    step = poisoned.state.global_step
    message = str(stopped.value)
    assert f"step {step} was stopped before the optimiser moved; no weight was changed" in message
    assert f"rank 0: policy, reward, value, value/bellman_residual is NaN or Inf on rows [{BAD_ROW}]" in message
    assert str(tmp_path / "non_finite" / f"step-{step}") in message
    for name, weight in poisoned.model.named_parameters():
        assert torch.equal(weight, snapshots[-1][name]), name


def test_the_batch_on_disk_reproduces_the_fault(poisoned: ObjectiveTrainer, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        poisoned.train()
    [report] = tmp_path.glob("non_finite/step-*/rank-0.json")
    fault, [batch] = load_fault(report)
    assert fault.row_ids == [BAD_ROW]
    assert asdict(fault) == json.loads(report.read_text())
    terms = {term.name: term for term in oreo_token(forward(poisoned.model, batch), beta=0.3, alpha=0.1)}
    by_row = dict(zip(batch["row_id"].tolist(), terms["value"].value.sum(-1).tolist(), strict=True))
    assert [row for row, value in by_row.items() if not math.isfinite(value)] == [BAD_ROW]


def test_a_gradient_norm_that_overflows_stops_the_step(policy_folder: Path, tmp_path: Path) -> None:
    # Finite losses whose gradients are not: the head's weight carries an Inf gradient through a hook.
    trainer = tiny_trainer(tiny_config(policy_folder, tmp_path, max_steps=1), trajectories(4))
    trainer.model.value.score.weight.register_hook(lambda gradient: gradient / 0.0)
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    with pytest.raises(NonFiniteError, match="the losses are finite, the gradient norm of value is not"):
        trainer.train()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))
    [report] = tmp_path.glob("non_finite/step-0/rank-0.json")
    fault, _ = load_fault(report)
    assert sorted(fault.row_ids) == [0, 1, 2, 3]
    assert fault.grad_norms == ["value"]


def test_a_value_head_that_is_not_finite_stops_the_step(policy_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(policy_folder, tmp_path, max_steps=1), trajectories(4))
    with torch.no_grad():
        trainer.model.value.score.weight[0, 3] = math.inf
    with pytest.raises(NonFiniteError, match=r"value, value/bellman_residual, value/mean is NaN or Inf on rows \["):
        trainer.train()


def _snapshot_before_each_forward(trainer: ObjectiveTrainer, snapshots: list[dict[str, torch.Tensor]]) -> None:
    def record(model: nn.Module, _: object) -> None:
        snapshots.append({name: weight.detach().clone() for name, weight in model.named_parameters()})

    trainer.model.register_forward_pre_hook(record)
