"""docs/memory.md, one process: the bytes of the tensors that exist between backward pass and optimiser step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from transformers import TrainerCallback

from tests.training.tiny_oreo import N_TOKENS, tiny_config, tiny_trainer, trajectories


class Weigh(TrainerCallback):
    """Per network: bytes of weights, of gradients and of AdamW's moments, in the second step."""

    def __init__(self) -> None:
        self.n_bytes: Counter[tuple[str, str]] = Counter()
        self.n_parameters: Counter[tuple[str, bool]] = Counter()  # by network and whether they are trained

    def on_pre_optimizer_step(self, args, state, control, *, model, optimizer, **_) -> None:
        if state.global_step != 1:  # moments exist from the first step on
            return
        for name, weight in model.named_parameters():
            network = name.split(".")[0]
            if name == "value.score.weight":  # 32 numbers in float32 whatever the trunk is in
                continue
            self.n_parameters[network, weight.requires_grad] += weight.numel()
            self.n_bytes[network, "weights"] += weight.nbytes
            self.n_bytes[network, "gradients"] += 0 if weight.grad is None else weight.grad.nbytes
            moments = [optimizer.state[weight][key] for key in ("exp_avg", "exp_avg_sq") if weight in optimizer.state]
            self.n_bytes[network, "optimizer"] += sum(moment.nbytes for moment in moments)


def weighed(policy_folder: Path, tmp_path: Path, **changes) -> Weigh:
    trainer = tiny_trainer(tiny_config(policy_folder, tmp_path, max_steps=2, **changes), trajectories(8))
    scale = Weigh()
    trainer.add_callback(scale)
    trainer.train()
    return scale


@pytest.mark.parametrize(
    ("changes", "trained", "frozen"),
    [
        ({}, (4, 4, 8), 4),
        ({"bf16": True}, (4, 4, 8), 4),
        ({"dtype": "bfloat16"}, (2, 2, 4), 2),
    ],
)
def test_cells_of_one_process_are_what_a_step_holds(policy_folder, tmp_path, changes, trained, frozen):
    scale = weighed(policy_folder, tmp_path, **changes)
    for network in ("policy", "value"):
        assert scale.n_parameters[network, False] == 0
        held = [scale.n_bytes[network, kind] for kind in ("weights", "gradients", "optimizer")]
        assert held == [n * scale.n_parameters[network, True] for n in trained], network
    n_reference = scale.n_parameters["reference", False]
    assert scale.n_bytes["reference", "weights"] == frozen * n_reference
    assert scale.n_bytes["reference", "gradients"] == scale.n_bytes["reference", "optimizer"] == 0


def test_lora_value_model_is_a_frozen_trunk_and_small_trained_adapters(policy_folder, tmp_path):
    # width 32, MLP 48, 2 layers: q, k, v, o have 32 + 32 inputs and outputs, the three of the MLP 32 + 48.
    scale = weighed(policy_folder, tmp_path, value_lora_rank=3)
    n_adapters = 3 * 2 * (4 * (32 + 32) + 3 * (32 + 48))
    assert scale.n_parameters["value", True] == n_adapters
    assert scale.n_bytes["value", "gradients"] == 4 * n_adapters
    assert scale.n_bytes["value", "optimizer"] == 8 * n_adapters
    assert scale.n_bytes["value", "weights"] == 4 * (n_adapters + scale.n_parameters["value", False])


def held_by(scale: Weigh, network: str) -> list[int]:
    return [scale.n_bytes[network, kind] for kind in ("weights", "gradients", "optimizer")]


def test_lora_policy_with_adapters_off_as_reference_is_one_frozen_body_and_small_trained_adapters(
    policy_folder, tmp_path
):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    scale = weighed(policy_folder, tmp_path, policy_lora_rank=3, reference_from="adapters_off")
    n_adapters = 3 * 2 * (4 * (32 + 32) + 3 * (32 + 48))
    n_frozen = scale.n_parameters["policy", False]
    assert scale.n_parameters["policy", True] == n_adapters
    assert held_by(scale, "policy") == [4 * (n_adapters + n_frozen), 4 * n_adapters, 8 * n_adapters]
    assert held_by(scale, "reference") == [0, 0, 0]


@pytest.mark.parametrize(
    ("source", "n_reference"),
    [("cached_log_probs", 0), ("cached_hidden", N_TOKENS * 32)],  # of cached hidden states the head remains, V * D
)
def test_cached_reference_is_at_most_its_head(policy_folder, tmp_path, source, n_reference):
    scale = weighed(policy_folder, tmp_path, reference_from=source, alpha=0.0)
    assert held_by(scale, "reference") == [4 * n_reference, 0, 0]
