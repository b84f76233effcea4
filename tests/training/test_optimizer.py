"""Parameter groups and clip norms of several networks under one optimiser."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from posttrain.training.optimizer import (
    AdamWSettings,
    Network,
    TensorGradients,
    build_optimizer,
    build_scheduler,
    clip_scale,
    network_parameters,
)

SETTINGS = AdamWSettings(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
COSINE = TrainingArguments(lr_scheduler_type="cosine", warmup_steps=2, use_cpu=True)
NETWORKS = (Network("policy", 1e-3, 1.0), Network("value", 2e-3, None))


@pytest.fixture
def pair() -> nn.ModuleDict:
    """Two linear layers with bias; gradients 3 and 4 on the policy's weight, 1 and 2 on the value's."""
    model = nn.ModuleDict({"policy": nn.Linear(2, 1), "value": nn.Linear(2, 1)})
    model.policy.weight.grad = torch.tensor([[3.0, 4.0]])
    model.policy.bias.grad = torch.zeros(1)
    model.value.weight.grad = torch.tensor([[1.0, 2.0]])
    model.value.bias.grad = torch.tensor([2.0])
    return model


def test_groups_carry_rate_and_decay_of_their_network(pair: nn.ModuleDict) -> None:
    optimizer = build_optimizer(pair, NETWORKS, SETTINGS, decayed={"policy.weight", "value.weight"})
    seen = [(group["lr"], group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in
            optimizer.param_groups]  # fmt: skip
    assert seen == [
        (1e-3, 0.1, [(1, 2)]),
        (1e-3, 0.0, [(1,)]),
        (2e-3, 0.1, [(1, 2)]),
        (2e-3, 0.0, [(1,)]),
    ]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


def test_a_network_that_starts_late_has_its_whole_schedule_after_its_start(pair: nn.ModuleDict) -> None:
    n_steps, start = 12, 5
    late = (Network("policy", 1e-3, 1.0, start_step=start), Network("value", 2e-3, None))
    optimizer = build_optimizer(pair, late, SETTINGS, decayed={"policy.weight"})
    scheduler = build_scheduler(optimizer, COSINE, n_steps)
    seen = []
    for _ in range(n_steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    policy, policy_bias, value = zip(*seen, strict=True)

    def cosine(step: int, n: int) -> float:  # two steps of warm-up, then half a cosine to 0
        return step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (n - 2)))

    expected = [0.0] * start + [1e-3 * cosine(step, n_steps - start) for step in range(n_steps - start)]
    assert policy == policy_bias == pytest.approx(expected)
    assert value == pytest.approx([2e-3 * cosine(step, n_steps) for step in range(n_steps)])


def test_a_resting_network_is_bit_equal_under_weight_decay(pair: nn.ModuleDict) -> None:
    late = (Network("policy", 1e-3, 1.0, start_step=1), Network("value", 2e-3, None))
    optimizer = build_optimizer(pair, late, SETTINGS, decayed={"policy.weight", "value.weight"})
    build_scheduler(optimizer, TrainingArguments(lr_scheduler_type="constant", use_cpu=True), 4)
    before = {name: tensor.clone() for name, tensor in pair.state_dict().items()}
    optimizer.step()
    assert all(torch.equal(pair.state_dict()[name], before[name]) for name in ("policy.weight", "policy.bias"))
    assert not torch.equal(pair.value.weight, before["value.weight"])


def test_a_schedule_that_follows_the_loss_cannot_start_late(pair: nn.ModuleDict) -> None:
    late = (Network("policy", 1e-3, 1.0, start_step=1), Network("value", 2e-3, None))
    optimizer = build_optimizer(pair, late, SETTINGS, decayed=())
    plateau = TrainingArguments(lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", use_cpu=True)
    with pytest.raises(ValueError, match="reduce_lr_on_plateau cannot start late"):
        build_scheduler(optimizer, plateau, 4)


def test_norms_are_taken_per_network(pair: nn.ModuleDict) -> None:
    # sqrt(9 + 16) = 5 and sqrt(1 + 4 + 4) = 3
    assert TensorGradients(network_parameters(pair, NETWORKS)).norms() == {"policy": 5.0, "value": 3.0}


def test_scaling_one_network_leaves_the_other_alone(pair: nn.ModuleDict) -> None:
    gradients = TensorGradients(network_parameters(pair, NETWORKS))
    gradients.scale("policy", clip_scale(5.0, 1.0))
    torch.testing.assert_close(pair.policy.weight.grad, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(pair.value.weight.grad, torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize(
    ("norm", "max_norm", "expected"), [(5.0, 1.0, 0.2), (0.5, 1.0, 1.0), (5.0, None, 1.0), (0.0, 1.0, 1.0)]
)
def test_clip_scale_only_shrinks(norm: float, max_norm: float | None, expected: float) -> None:
    assert math.isclose(clip_scale(norm, max_norm), expected)


def test_a_trainable_parameter_without_a_network_is_refused(pair: nn.ModuleDict) -> None:
    pair["stray"] = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"'stray\.weight' is trainable but belongs to none of the networks"):
        network_parameters(pair, NETWORKS)


def test_a_network_that_is_frozen_is_refused(pair: nn.ModuleDict) -> None:
    pair.value.requires_grad_(False)
    with pytest.raises(ValueError, match="network 'value' has no trainable parameter"):
        network_parameters(pair, NETWORKS)
