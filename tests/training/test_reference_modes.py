"""The four sources of a reference through the trainer: the same run, whatever stands in for the frozen network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.data.collate import StateLevel, collate
from posttrain.schema import EncodedTrajectory
from posttrain.training.oreo_config import OreoConfig
from posttrain.training.trainer import ObjectiveTrainer
from tests.training.tiny_oreo import N_TOKENS, step_logs, tiny_config, tiny_trainer, trajectories, write_policy

# A cached row was scored in a batch of other rows, padded to another length: float32 sums in another order, 6e-8 each.
# Six steps of Adam, which divides by sqrt(v), raise that; a weight whose gradient is almost 0 moves by its rounding.
FIRST_STEP = {"rel_tol": 1e-6, "abs_tol": 1e-6}
LATER_STEPS = {"rel_tol": 2e-5, "abs_tol": 2e-5}
WEIGHTS_ATOL = 2e-3  # of up to 0.12 that six steps of 2e-2 can move a weight
LORA = {"policy_lora_rank": 4, "policy_lora_alpha": 8.0}
CACHED = ["cached_log_probs", "cached_hidden"]


def equal_lengths(n_rows: int) -> list[EncodedTrajectory]:
    """Rows of 9 tokens, 7 of them actions: any four of them are a batch of one shape."""
    rows = []
    for row in trajectories(8 * n_rows):
        if len(row.input_ids) >= 9:
            is_action = tuple(j >= 2 for j in range(9))
            rows.append(EncodedTrajectory(len(rows), row.input_ids[:9], is_action, is_action, (0.0,) * 8 + (1.0,)))
    return rows[:n_rows]


def finished(policy: Path, folder: Path, rows: list[EncodedTrajectory], **changes: Any) -> ObjectiveTrainer:
    trainer = tiny_trainer(tiny_config(policy, folder, **{"max_steps": 6, **changes}), rows)
    trainer.train()
    return trainer


def trained_weights(trainer: ObjectiveTrainer) -> dict[str, Tensor]:
    return {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def assert_same_run(here: ObjectiveTrainer, there: ObjectiveTrainer, *, is_exact: bool) -> None:
    """Every loss and metric of every step, and every trained weight."""
    for step, (log, expected) in enumerate(zip(step_logs(here), step_logs(there), strict=True)):
        for name in (name for name in expected if name in log):
            bound = {"rel_tol": 0.0} if is_exact else FIRST_STEP if step == 0 else LATER_STEPS
            assert math.isclose(log[name], expected[name], **bound), (step, name, log[name], expected[name])
    weights = trained_weights(here)
    assert weights.keys() == trained_weights(there).keys()
    for name, weight in trained_weights(there).items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=0.0 if is_exact else WEIGHTS_ATOL)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that is not the policy's start: its KL is not 0 in the first step."""
    folder = write_policy(tmp_path_factory.mktemp("other"))
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    moved = {name: w + 0.05 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("source", CACHED)
def test_cached_run_is_the_live_run_bit_for_bit_when_batches_have_one_shape(policy_folder, tmp_path, source):
    rows = equal_lengths(20)
    changes = {"alpha": 0.0 if source == "cached_log_probs" else 0.2}
    live = finished(policy_folder, tmp_path / "live", rows, **changes)
    cached = finished(policy_folder, tmp_path / "cached", rows, reference_from=source, **changes)
    assert_same_run(cached, live, is_exact=True)
    assert ("loss/kl_ref" in step_logs(cached)[0]) == (source == "cached_hidden")


@pytest.mark.parametrize("source", CACHED)
def test_cached_run_is_the_live_run_to_rounding_when_rows_are_ragged(policy_folder, other_folder, tmp_path, source):
    changes: dict[str, Any] = {"reference": str(other_folder), "alpha": 0.0}
    if source == "cached_hidden":
        changes |= {"alpha": 0.2, "alpha_forward": 0.3}
    live = finished(policy_folder, tmp_path / "live", trajectories(24), **changes)
    cached = finished(policy_folder, tmp_path / "cached", trajectories(24), reference_from=source, **changes)
    assert_same_run(cached, live, is_exact=False)
    assert abs(step_logs(cached)[0]["policy/log_ratio"]) > 0.1


@pytest.mark.parametrize("source", CACHED)
def test_cached_run_holds_no_reference_body(policy_folder, tmp_path, source):
    config = tiny_config(policy_folder, tmp_path, reference_from=source, alpha=0.0)
    model = tiny_trainer(config, trajectories(8)).model
    held = {name: weight.shape for name, weight in model.named_parameters() if name.startswith("reference")}
    assert held == ({} if source == "cached_log_probs" else {"reference.weight": (N_TOKENS, 32)})
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if name in held)


@pytest.mark.parametrize("is_checkpointing", [False, True])
def test_adapters_off_is_a_live_copy_of_the_base_bit_for_bit(policy_folder, tmp_path, is_checkpointing):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    changes = {**LORA, "alpha": 0.2, "alpha_forward": 0.1, "gradient_checkpointing": is_checkpointing}
    live = finished(policy_folder, tmp_path / "live", trajectories(24), **changes)
    off = finished(policy_folder, tmp_path / "off", trajectories(24), reference_from="adapters_off", **changes)
    assert_same_run(off, live, is_exact=True)
    assert step_logs(off)[0]["loss/kl_ref"] == step_logs(off)[0]["loss/kl_forward"] == 0.0
    assert step_logs(off)[-1]["loss/kl_ref"] > 1e-4  # the policy has left the reference
    assert off.model.reference is None


def test_lora_policy_moves_adapters_alone_and_is_saved_as_a_plain_causal_lm(policy_folder, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    config = tiny_config(policy_folder, tmp_path, reference_from="adapters_off", max_steps=6, **LORA)
    trainer = tiny_trainer(config, trajectories(24))
    before = {name: weight.clone() for name, weight in trainer.model.policy.named_parameters()}
    trainer.train()
    trainer.save_model()
    moved = {name for name, weight in trainer.model.policy.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if ".lora_" in name}
    assert len(moved) == 2 * 14  # A and B on the seven linear layers of two blocks, none on the tied head
    plain, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "policy", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    batch = collate(trajectories(4), pad_id=0, states=StateLevel.TOKEN)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["is_token"].long()}
    start = AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.float32)
    with torch.no_grad():
        there = trainer.model.policy.eval()(**inputs).logits
        # W x + B A x against (W + B A) x in float32: another order of sums.
        torch.testing.assert_close(plain(**inputs).logits, there, rtol=1e-4, atol=1e-4)
        assert (start(**inputs).logits - there).abs().max() > 0.1


def test_a_run_with_adapters_off_goes_on_from_a_checkpoint_as_if_never_stopped(policy_folder, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    changes = {**LORA, "reference_from": "adapters_off", "save_strategy": "steps", "save_steps": 3}
    unbroken = finished(policy_folder, tmp_path, trajectories(24), **changes)
    config = tiny_config(policy_folder, tmp_path / "resumed", max_steps=6, **changes)
    resumed = tiny_trainer(config, trajectories(24))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same_run(resumed, unbroken, is_exact=True)


def test_forward_kl_is_logged_as_the_mean_over_rows_of_the_mean_over_actions(policy_folder, other_folder, tmp_path):
    rows = trajectories(8)
    changes = {"reference": str(other_folder), "alpha_forward": 0.7, "alpha": 0.0}
    config = tiny_config(policy_folder, tmp_path, per_device_train_batch_size=8, max_steps=1, **changes)
    trainer = tiny_trainer(config, rows)
    policy, other = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (policy_folder, other_folder)
    )
    means = []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        log_pi, log_ref = (model(ids).logits[0, :-1].log_softmax(-1) for model in (policy, other))
        kl = (log_ref.exp() * (log_ref - log_pi)).sum(-1)
        means.append(kl[torch.tensor(row.is_action[1:])].mean().item())
    trainer.train()
    [log] = step_logs(trainer)
    expected = sum(means) / len(means)
    assert expected > 0.05
    assert math.isclose(log["loss/kl_forward"], expected, rel_tol=1e-4)  # float32, another batch shape
    assert math.isclose(log["loss"], log["loss/value"] + log["loss/policy"] + 0.7 * expected, rel_tol=1e-4)


def test_forward_kl_pulls_the_policy_towards_the_reference(policy_folder, other_folder, tmp_path):
    changes = {"reference": str(other_folder), "alpha_forward": 100.0, "beta": 0.01, "alpha": 0.0}
    logs = step_logs(finished(policy_folder, tmp_path, trajectories(4), policy_learning_rate=3e-3, **changes))
    assert logs[-1]["loss/kl_forward"] < 0.7 * logs[0]["loss/kl_forward"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_from": "cached_log_probs"}, "alpha is 0.1 .* exact KL needs the reference's final hidden states"),
        ({"reference_from": "cached_log_probs", "alpha": 0.0, "alpha_forward": 0.2}, "alpha_forward 0.2, but cached"),
        ({"reference_from": "adapters_off"}, "switches the policy's adapters off: set policy_lora_rank"),
        (
            {"reference_from": "adapters_off", **LORA, "reference": "x"},
            "reference is x, but .* it is the model itself",
        ),
        ({"reference_cache": "x"}, "reference_cache x is not used by reference_from live"),
        ({"policy_lora_rank": -1}, "policy_lora_rank is -1, needs a rank"),
        ({"policy_lora_alpha": 8.0}, "policy_lora_alpha 8.0 scales adapters: set policy_lora_rank too"),
        ({"alpha_forward": -0.1}, "alpha_forward is -0.1, it must not be negative"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(policy_folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(policy_folder, tmp_path, **changes)


@pytest.mark.parametrize("source", CACHED)
def test_batch_without_cached_numbers_is_refused_by_name(policy_folder, tmp_path, source):
    config: OreoConfig = tiny_config(policy_folder, tmp_path, reference_from=source, alpha=0.0)
    trainer = tiny_trainer(config, trajectories(8))
    batch = collate(trajectories(4), pad_id=0, states=StateLevel.TOKEN)
    name = "ref_logp" if source == "cached_log_probs" else "ref_hidden"
    with pytest.raises(ValueError, match=f"the batch has no {name}.*collated without the reference cache"):
        trainer.forward(trainer.model, batch)
