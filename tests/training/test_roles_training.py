"""One base under two adapters, and one trunk under two heads, through the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.collate import collate
from posttrain.models.value import load_value_model, values_at_every_position
from posttrain.schema import TokenBatch
from posttrain.training.trainer import ObjectiveTrainer
from tests.training.tiny_oreo import step_logs, tiny_config, tiny_trainer, trajectories

ADAPTERS = {"policy_lora_rank": 4, "value_lora_rank": 3, "reference_from": "adapters_off"}
SHARED = {"roles": "shared_trunk", "value_gradient_scale": 0.5}


def finished(policy: Path, folder: Path, **changes: Any) -> ObjectiveTrainer:
    trainer = tiny_trainer(tiny_config(policy, folder, **{"max_steps": 6, **changes}), trajectories(24))
    trainer.train()
    return trainer


def trained_weights(trainer: ObjectiveTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def test_two_adapters_train_as_two_networks_with_adapters_do_bit_for_bit(policy_folder, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    apart = finished(policy_folder, tmp_path / "apart", **ADAPTERS)
    shared = finished(policy_folder, tmp_path / "shared", roles="two_adapters", **ADAPTERS)
    expected = trained_weights(apart)
    assert trained_weights(shared).keys() == expected.keys()
    for name, weight in trained_weights(shared).items():
        assert torch.equal(weight, expected[name]), name
    for here, there in zip(step_logs(shared), step_logs(apart), strict=True):
        assert (here["loss"], here["loss/value"]) == (there["loss"], there["loss/value"])
    n_frozen = {t: sum(p.numel() for p in t.model.parameters() if not p.requires_grad) for t in (apart, shared)}
    assert n_frozen[apart] == 2 * n_frozen[shared]  # the tied output head is the policy's embedding


def test_a_detached_head_leaves_the_policy_what_it_is_without_a_value_loss(policy_folder, tmp_path):
    # The critic's term reaches the head alone, so twice its learning rate changes V, but in the first step nothing of
    # the policy: the policy term reads the value of the step before.
    slow, fast = (
        finished(policy_folder, tmp_path / name, roles="shared_trunk", max_steps=1, value_learning_rate=rate)
        for name, rate in (("slow", 1e-2), ("fast", 2e-2))
    )
    expected = trained_weights(slow)
    for name, weight in trained_weights(fast).items():
        assert torch.equal(weight, expected[name]) == (name != "value.score.weight"), name


def test_a_scaled_gradient_moves_the_trunk_while_the_policy_term_is_silent(policy_folder, tmp_path):
    # alpha 0, beta tiny: the policy's own gradient is 2 beta (V - R) grad log pi, nearly nothing beside the value's.
    quiet = {"alpha": 0.0, "beta": 1e-6, "roles": "shared_trunk", "max_steps": 2}
    norms = {
        scale: step_logs(finished(policy_folder, tmp_path / str(scale), value_gradient_scale=scale, **quiet))[1][
            "policy/grad_norm"
        ]
        for scale in (0.0, 1.0)
    }
    assert norms[0.0] < 1e-4 < 1e-1 < norms[1.0]


@pytest.mark.parametrize("roles", ["two_adapters", "shared_trunk"])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(policy_folder, tmp_path, roles):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    changes = {"save_strategy": "steps", "save_steps": 3, **(SHARED if roles == "shared_trunk" else ADAPTERS)}
    changes["roles"] = roles
    unbroken = finished(policy_folder, tmp_path / "run", **changes)
    resumed = tiny_trainer(tiny_config(policy_folder, tmp_path / "run", max_steps=6, **changes), trajectories(24))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    expected = trained_weights(unbroken)
    for name, weight in trained_weights(resumed).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("changes", [SHARED, {**SHARED, "policy_lora_rank": 4}, {**ADAPTERS, "roles": "two_adapters"}])
def test_the_saved_value_model_says_what_training_said_last(policy_folder, tmp_path, changes):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    trainer = finished(policy_folder, tmp_path, **changes)
    trainer.save_model()
    rows = TokenBatch(**collate(trajectories(4), pad_id=0, states="token"))
    with torch.no_grad():
        said = trainer.model(rows.input_ids, rows.is_token, rows.is_action)["value"][rows.is_action]
        loaded = load_value_model(tmp_path / "value", dtype=torch.float32)
        values = values_at_every_position(loaded, rows.input_ids, rows.is_token)[:, :-1][rows.is_action]
    torch.testing.assert_close(values, said, rtol=1e-5, atol=1e-5)
    assert values.std() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roles": "two_adapters", "policy_lora_rank": 4}, "value_lora_rank 0: both need a rank"),
        ({"roles": "shared_trunk", "value_lora_rank": 4}, "with roles shared_trunk it has none"),
        ({"roles": "shared_trunk", "value_model": "v"}, "leave value_model out, or take roles separate"),
        ({"value_gradient_scale": 0.5}, "no gradient of the value reaches the policy: set roles shared_trunk"),
        ({"roles": "shared_trunk", "value_gradient_scale": -1.0}, "needs a finite number >= 0"),
    ],
)
def test_roles_that_contradict_other_keys_are_refused(policy_folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(policy_folder, tmp_path, **changes)
