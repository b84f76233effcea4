"""Rounds of sampling and learning: the gradient of a step, what it does not depend on, what becomes of even groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posttrain.schema import RolloutValues
from posttrain.training.online_groups import Graded, SampleReward
from posttrain.training.online_trainer import OnlineTrainer, forward
from posttrain.training.trainer import Batch
from tests.training.tiny_online import even_share, online_config, online_trainer
from tests.training.tiny_oreo import step_logs

FLOAT64_RTOL = 1e-9  # float64 rounds at 1e-16; Adam's division by sqrt(v) costs some digits where a gradient is small


def trained(policy: Path, folder: Path, reward: SampleReward = even_share, **changes: Any) -> OnlineTrainer:
    trainer = online_trainer(online_config(policy, folder, **changes), reward)
    trainer.train()
    return trainer


def recorded(trainer: OnlineTrainer) -> list[Batch]:
    """Fills with the micro-batches that the trainer learns from."""
    seen: list[Batch] = []

    def recording(model: nn.Module, batch: Batch) -> RolloutValues:
        seen.append(batch)
        return forward(model, batch)

    trainer.forward = recording
    return seen


def weights(trainer: OnlineTrainer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.policy.named_parameters()}


def all_alike(prompts: Sequence[str], completions: Sequence[Sequence[int]]) -> list[Graded]:
    return [Graded(1 / 3, {}) for _ in completions]


def only_t8_tells(prompts: Sequence[str], completions: Sequence[Sequence[int]]) -> list[Graded]:
    """Samples of prompts that begin with t5 all earn the same."""
    graded = even_share(prompts, completions)
    return [Graded(0.5, {}) if text.startswith("t5") else one for text, one in zip(prompts, graded, strict=True)]


def test_reward_rises_from_chance_when_the_policy_learns_from_its_own_samples(policy_folder: Path, tmp_path: Path):
    # Half of the ids are even. KL 0: nothing holds the policy back.
    trainer = trained(policy_folder, tmp_path, rounds=25, alpha=0.0)
    rewards = [step["reward/even"] for step in step_logs(trainer)]
    assert rewards[0] < 0.65
    assert sum(rewards[-5:]) / 5 > 0.95


def test_step_is_reinforce_with_the_mean_of_the_others_as_baseline(policy_folder: Path, tmp_path: Path):
    # By hand from the recorded tokens: dense logits, loops over rows and groups, no function of losses/.
    trainer = online_trainer(online_config(policy_folder, tmp_path, rounds=1, dtype="float64", alpha=0.3))
    start = {name: weight.requires_grad_() for name, weight in weights(trainer).items()}
    batches = recorded(trainer)
    trainer.train()
    [batch], [logged] = batches, step_logs(trainer)
    logits = torch.func.functional_call(trainer.model.policy, start, kwargs={"input_ids": batch["input_ids"]}).logits
    logp = logits.log_softmax(-1)
    reward, loss, n_rows = [], torch.zeros((), dtype=torch.float64), len(batch["input_ids"])
    for ids, is_action in zip(batch["input_ids"], batch["is_action"], strict=True):
        chosen = ids[1:][is_action]
        reward.append(float((chosen % 2 == 0).double().mean()))
    for row, (ids, is_action) in enumerate(zip(batch["input_ids"], batch["is_action"], strict=True)):
        first = row - row % 4
        others = [reward[other] for other in range(first, first + 4) if other != row]
        advantage = reward[row] - sum(others) / 3
        for t in is_action.nonzero().flatten().tolist():
            loss = loss - advantage * logp[row, t, ids[t + 1]] / n_rows
    gradients = torch.autograd.grad(loss, list(start.values()))
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    assert n_rows == 16
    assert logged["loss/policy"] == pytest.approx(loss.item(), rel=1e-6)  # advantages are float32
    assert logged["policy/grad_norm"] == pytest.approx(norm, rel=1e-6)  # at the start the KL has no gradient
    assert logged["loss/kl_ref"] == 0.0
    assert logged["reward/even"] == pytest.approx(sum(reward) / 16, rel=1e-12)


def test_recorded_log_probs_are_those_of_the_policy_that_sampled(policy_folder: Path, tmp_path: Path):
    trainer = online_trainer(online_config(policy_folder, tmp_path, rounds=1, learning_rate=0.0))
    batches = recorded(trainer)
    trainer.train()
    [batch] = batches
    values = forward(trainer.model, batch)
    # Token by token with a cache there, whole rows here: units in the last place of float32.
    torch.testing.assert_close(batch["behavior_logp"], values.logp.detach(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("n_prompts", "n_micro", "sample_batch_size"), [(2, 2, 256), (1, 4, 5), (4, 1, 3)])
def test_neither_micro_batches_nor_the_samplers_batch_size_change_a_run(
    policy_folder: Path, tmp_path: Path, n_prompts: int, n_micro: int, sample_batch_size: int
):
    settings = {"dtype": "float64", "policy_max_grad_norm": 0.3}
    whole = trained(policy_folder, tmp_path / "whole", **settings)
    split = trained(
        policy_folder,
        tmp_path / "split",
        per_device_train_batch_size=n_prompts,
        gradient_accumulation_steps=n_micro,
        sample_batch_size=sample_batch_size,
        **settings,
    )
    for here, there in zip(step_logs(split), step_logs(whole), strict=True):
        for name in ("loss", "loss/policy", "reward/even", "reward/even/t8", "policy/grad_norm"):
            assert math.isclose(here[name], there[name], rel_tol=1e-8, abs_tol=1e-10), name
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], weight, rtol=FLOAT64_RTOL, atol=1e-8, msg=name)


@pytest.mark.parametrize("updates_per_round", [1, 2])
def test_a_resumed_run_ends_with_the_same_weights_and_logs(
    policy_folder: Path, tmp_path: Path, updates_per_round: int
):
    # One log over all steps, a checkpoint in the middle of it: what samples earned travels with the checkpoint.
    settings = {
        "rounds": 6 // updates_per_round,
        "updates_per_round": updates_per_round,
        "objective": "grpo",
        "logging_steps": 6,
        "save_strategy": "steps",
        "save_steps": 4,
        "lr_scheduler_type": "linear",
    }
    unbroken = trained(policy_folder, tmp_path / "run", **settings)
    resumed = online_trainer(online_config(policy_folder, tmp_path / "run", **settings))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    for name, weight in weights(unbroken).items():
        assert torch.equal(weights(resumed)[name], weight), name
    [here], [there] = step_logs(resumed), step_logs(unbroken)
    assert here == there
    assert "reward/even/t5" in here


def test_updates_of_one_round_learn_from_the_same_samples_and_only_the_first_is_on_policy(
    policy_folder: Path, tmp_path: Path
):
    trainer = online_trainer(
        online_config(
            policy_folder, tmp_path, rounds=2, updates_per_round=2, objective="grpo", clip_low=0.05, clip_high=0.05
        )
    )
    batches = recorded(trainer)
    trainer.train()
    first, again, second, _ = batches
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["behavior_logp"], second["behavior_logp"])
    clipped = [step["policy/clip_fraction"] for step in step_logs(trainer)]
    assert clipped[0] == clipped[2] == 0.0
    assert min(clipped[1], clipped[3]) > 0.1


def test_kl_to_the_sampling_policy_is_logged_and_moves_later_updates_alone(policy_folder: Path, tmp_path: Path):
    settings = {"rounds": 1, "updates_per_round": 2, "objective": "grpo", "kl": "rollout"}
    free = trained(policy_folder, tmp_path / "free", alpha=0.0, **settings)
    held = trained(policy_folder, tmp_path / "held", alpha=5.0, **settings)
    first, second = step_logs(held)
    assert first["loss/kl_rollout"] == pytest.approx(0.0, abs=1e-10)
    assert second["loss/kl_rollout"] > 1e-3
    norms = [[step["policy/grad_norm"] for step in step_logs(trainer)] for trainer in (free, held)]
    # Rounding alone: the sampler's log-probs differ from the trainer's by units in the last place, times alpha.
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-4)
    assert norms[0][1] != pytest.approx(norms[1][1], rel=0.05)


@pytest.mark.parametrize("even_groups", ["keep", "skip"])
def test_groups_that_earned_the_same_move_nothing_exactly(policy_folder: Path, tmp_path: Path, even_groups: str):
    trainer = online_trainer(
        online_config(
            policy_folder, tmp_path, alpha=0.0, advantage_scale="group_std", even_groups=even_groups, weight_decay=0.0
        ),
        all_alike,
    )
    before = weights(trainer)
    trainer.train()
    for step in step_logs(trainer):
        assert step["policy/grad_norm"] == 0.0
        assert step["reward/even_groups"] == 1.0
    for name, weight in weights(trainer).items():
        assert torch.equal(weight, before[name]), name


def test_skipped_groups_leave_the_averages_to_the_others(policy_folder: Path, tmp_path: Path):
    # Two of the four prompts of a round begin with t5, so half of the rows are out, and the mean over the rest is
    # twice the mean over all; the samples are the same.
    settings = {"rounds": 1, "dtype": "float64", "alpha": 0.0}
    kept = trained(policy_folder, tmp_path / "keep", only_t8_tells, **settings)
    skipped = trained(policy_folder, tmp_path / "skip", only_t8_tells, even_groups="skip", **settings)
    [of_all], [of_rest] = step_logs(kept), step_logs(skipped)
    assert of_all["reward/even_groups"] == of_rest["reward/even_groups"] == 0.5
    assert of_rest["loss/policy"] == pytest.approx(2 * of_all["loss/policy"], rel=1e-12)
    assert of_rest["policy/grad_norm"] == pytest.approx(2 * of_all["policy/grad_norm"], rel=1e-12)


def test_even_groups_are_drawn_anew_as_often_as_asked_and_the_reward_is_that_of_the_first_draw(
    policy_folder: Path, tmp_path: Path
):
    # One first token in four earns 1; of four samples all agree with a chance of 1/3 or so, and of nine draws one does
    # not.
    drawn: list[int] = []

    def first_in_four(prompts: Sequence[str], completions: Sequence[Sequence[int]]) -> list[Graded]:
        drawn.append(len(completions))
        return [Graded(float(ids[0] % 4 == 0), {"reward": float(ids[0] % 4 == 0)}) for ids in completions]

    settings = {"rounds": 6, "learning_rate": 0.0}
    plain = trained(policy_folder, tmp_path / "plain", first_in_four, **settings)
    assert set(drawn) == {16}
    drawn.clear()
    again = trained(policy_folder, tmp_path / "again", first_in_four, resample_tries=8, **settings)
    n_even = [round(4 * step["reward/even_groups"]) for step in step_logs(plain)]
    assert sum(n_even) > 0
    assert [step["reward/even_groups"] * 4 for step in step_logs(again)] == n_even
    assert [step["reward"] for step in step_logs(again)] == [step["reward"] for step in step_logs(plain)]
    redrawn = [n for n in drawn if n != 16]
    assert sum(redrawn) >= 4 * sum(n_even)
    assert all(step["policy/grad_norm"] > 0 for step in step_logs(again))


def test_reward_that_leaves_samples_out_is_refused(policy_folder: Path, tmp_path: Path):
    trainer = online_trainer(online_config(policy_folder, tmp_path), lambda prompts, ids: even_share(prompts, ids)[1:])
    with pytest.raises(ValueError, match=r"the reward graded 15 samples of 16"):
        trainer.train()
