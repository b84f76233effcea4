"""The step of ObjectiveTrainer: global counts, splits, updates in turn, logs that are exact averages."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments

from posttrain.data.collate import StateLevel, collate
from posttrain.losses import oreo_token
from posttrain.models.actor_critic import token_values
from posttrain.schema import TokenBatch
from posttrain.training.oreo_networks import load_networks
from posttrain.training.trainer import ObjectiveTrainer
from tests.training.tiny_oreo import step_logs, tiny_config, tiny_trainer, trajectories

FLOAT64_RTOL = 1e-9  # float64 rounds at 1e-16; Adam's division by sqrt(v) costs some digits where a gradient is small


def trained(policy: Path, folder: Path, n_rows: int = 8, **changes: Any) -> ObjectiveTrainer:
    trainer = tiny_trainer(tiny_config(policy, folder, **changes), trajectories(n_rows))
    trainer.train()
    return trainer


def weights(trainer: ObjectiveTrainer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize(("batch_size", "n_micro_batches"), [(4, 2), (3, 3), (1, 8)])
def test_the_update_does_not_depend_on_how_the_batch_is_split(
    policy_folder: Path, tmp_path: Path, batch_size: int, n_micro_batches: int
) -> None:
    # 8 rows are one step in each case: 8, 4 + 4, 3 + 3 + 2 (ragged) and eight times 1.
    settings = {"max_steps": 3, "dtype": "float64", "policy_max_grad_norm": 0.3, "value_max_grad_norm": 0.7}
    whole = trained(policy_folder, tmp_path / "whole", per_device_train_batch_size=8, **settings)
    split = trained(
        policy_folder,
        tmp_path / "split",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=n_micro_batches,
        **settings,
    )
    for here, there in zip(step_logs(split), step_logs(whole), strict=True):
        for name in ("loss/value", "loss/policy", "loss/kl_ref", "policy/grad_norm", "value/grad_norm"):
            assert math.isclose(here[name], there[name], rel_tol=FLOAT64_RTOL, abs_tol=1e-12), name
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], weight, rtol=FLOAT64_RTOL, atol=1e-9, msg=name)


def test_one_backward_equals_a_value_step_then_a_policy_step(policy_folder: Path, tmp_path: Path) -> None:
    """The reference code steps the value, then the policy with the values from before that step."""
    config = tiny_config(
        policy_folder, tmp_path, dtype="float64", per_device_train_batch_size=8, max_steps=1,
        policy_max_grad_norm=None, value_max_grad_norm=None,
    )  # fmt: skip
    rows = trajectories(8)
    together = tiny_trainer(config, rows)
    together.train()

    apart = load_networks(config)
    value_step = torch.optim.AdamW(apart.value.parameters(), lr=2e-2, betas=(0.9, 0.95), weight_decay=0.0)
    policy_step = torch.optim.AdamW(apart.policy.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    batch = TokenBatch(**collate(rows, pad_id=0, states=StateLevel.TOKEN))

    before = token_values(apart, batch)
    critic = {term.name: term for term in oreo_token(before, beta=config.beta, alpha=config.alpha)}["value"]
    (critic.value.sum() / 8).backward()
    value_step.step()
    apart.zero_grad()

    values = replace(token_values(apart, batch), value=before.value.detach())
    terms = {term.name: term for term in oreo_token(values, beta=config.beta, alpha=config.alpha)}
    (terms["policy"].value.sum() / 8 + config.alpha * terms["kl_ref"].value.sum() / 8).backward()
    policy_step.step()

    for name, weight in apart.named_parameters():
        torch.testing.assert_close(weights(together)[name], weight.detach(), rtol=FLOAT64_RTOL, atol=1e-9, msg=name)


def test_logged_terms_are_averages_over_rows_not_over_micro_batches(policy_folder: Path, tmp_path: Path) -> None:
    # Steps of 3 + 2 rows, one log after both: the mean of the two means would weigh the rows 1/6 and 1/4.
    rows = trajectories(5)
    config = tiny_config(
        policy_folder, tmp_path, per_device_train_batch_size=3, max_steps=2, logging_steps=2,
        policy_learning_rate=0.0, value_learning_rate=0.0,
    )  # fmt: skip
    trainer = tiny_trainer(config, rows)
    trainer.train()
    [logged] = step_logs(trainer)
    mean_reward = sum(sum(row.reward) for row in rows) / 5
    assert mean_reward not in (0.0, 1.0)
    assert math.isclose(logged["reward"], mean_reward)
    assert math.isclose(logged["loss/value"], mean_reward, rel_tol=1e-6)  # V = 0, so the residual is -R, and R^2 = R


def test_the_logged_loss_is_the_sum_of_its_terms(policy_folder: Path, tmp_path: Path) -> None:
    trainer = trained(policy_folder, tmp_path, gradient_accumulation_steps=2)
    for logged in step_logs(trainer):
        expected = logged["loss/value"] + logged["loss/policy"] + 0.1 * logged["loss/kl_ref"]
        assert math.isclose(logged["loss"], expected, rel_tol=1e-6)
    assert step_logs(trainer)[-1]["loss/kl_ref"] > 0.01


def test_each_network_has_its_own_learning_rate(policy_folder: Path, tmp_path: Path) -> None:
    # Adam's first step moves a weight by its learning rate, whatever the size of its gradient.
    trainer = tiny_trainer(
        tiny_config(policy_folder, tmp_path, policy_learning_rate=1e-3, value_learning_rate=4e-3, max_steps=1),
        trajectories(8),
    )
    before = weights(trainer)
    trainer.train()
    moved = {name: (weight - before[name]).abs().max().item() for name, weight in weights(trainer).items()}
    assert max(moved[name] for name in moved if name.startswith("reference.")) == 0.0
    assert math.isclose(max(moved[name] for name in moved if name.startswith("policy.")), 1e-3, rel_tol=1e-3)
    assert math.isclose(max(moved[name] for name in moved if name.startswith("value.")), 4e-3, rel_tol=1e-3)


def test_gradient_checkpointing_changes_no_loss(policy_folder: Path, tmp_path: Path) -> None:
    plain = trained(policy_folder, tmp_path / "plain")
    recomputed = trained(policy_folder, tmp_path / "recomputed", gradient_checkpointing=True)
    assert recomputed.model.policy.is_gradient_checkpointing
    assert recomputed.model.value.is_gradient_checkpointing
    assert [log["loss"] for log in step_logs(recomputed)] == [log["loss"] for log in step_logs(plain)]


def test_a_resumed_run_ends_with_the_same_weights_and_logs(policy_folder: Path, tmp_path: Path) -> None:
    # One log over steps 1 to 4, a checkpoint in the middle of it: sums of terms travel with the checkpoint.
    settings = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3}
    unbroken = trained(policy_folder, tmp_path / "run", n_rows=10, **settings)
    resumed = tiny_trainer(tiny_config(policy_folder, tmp_path / "run", **settings), trajectories(10))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for name, weight in weights(unbroken).items():
        assert torch.equal(weights(resumed)[name], weight), name
    [here], [there] = step_logs(resumed), step_logs(unbroken)
    assert here == there


def test_a_joint_clip_norm_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(policy_folder, tmp_path, max_grad_norm=1.0)
    with pytest.raises(ValueError, match=r"max_grad_norm is 1\.0, but each network is clipped on its own"):
        tiny_trainer(config, trajectories(4))


def test_arguments_that_drop_columns_are_refused(policy_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(policy_folder, tmp_path, remove_unused_columns=True)
    assert isinstance(config, TrainingArguments)
    with pytest.raises(ValueError, match="remove_unused_columns drops masks and row ids"):
        tiny_trainer(config, trajectories(4))
