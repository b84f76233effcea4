"""How a value model stands to its policy: beside it, on the same frozen weights, or as one head on top of it."""

from __future__ import annotations

import os
from enum import StrEnum

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PretrainedConfig, PreTrainedModel

from posttrain.models.lora import has_lora
from posttrain.models.quantized import FSDP, without_quantization
from posttrain.models.value import ValueHead, as_value_config


class Roles(StrEnum):
    """What policy and value model have in common."""

    SEPARATE = "separate"  # nothing: a trunk each, the paper's form
    TWO_ADAPTERS = "two_adapters"  # the frozen weights, under LoRA adapters of their own
    SHARED_TRUNK = "shared_trunk"  # the trunk: V is a head on the policy's final hidden states


class HeadOnTrunk(nn.Module):
    """V = w · h with the policy's final hidden states h: no second body in memory, no second forward pass.

    The gradient of V's loss is scaled by `gradient_scale` where it enters the trunk; 0 detaches it, and the policy
    then learns what it would learn beside a separate value model with the same values.
    """

    def __init__(self, policy: PreTrainedModel, *, gradient_scale: float) -> None:
        """Raises ValueError for an architecture that cannot be saved as a value model."""
        super().__init__()
        classifier_config(policy)
        width = policy.config.get_text_config().hidden_size
        self.score = ValueHead(torch.zeros(1, width, dtype=policy.dtype))
        self.gradient_scale = gradient_scale

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [B, L, D] of the policy -> V [B, L] float32."""
        still = hidden.detach()
        entering = still if self.gradient_scale == 0.0 else still + self.gradient_scale * (hidden - still)
        return self.score(entering).squeeze(-1)


def share_frozen_weights(policy: PreTrainedModel, value: PreTrainedModel) -> None:
    """Let the frozen weights of `value` be those of `policy`, in place: one base under two sets of adapters.

    Both come from the same files, so no number changes. Raises ValueError when one of them has no adapters, since a
    weight that one network trains would move under the other, and under FSDP2, which shards a weight in one place.
    """
    if os.environ.get(FSDP) == "true":
        raise ValueError(
            "roles is two_adapters, but FSDP2 cannot shard a weight that two networks share: take roles separate, "
            "where the second copy is sharded too, or DDP or ZeRO"
        )
    for name, network in (("policy", policy), ("value model", value)):
        if not has_lora(network):
            raise ValueError(f"the {name} has no LoRA adapters, and would move the weights under the other network")
    shared = dict(policy.named_parameters())
    for name, weight in list(value.named_parameters()):
        if name in shared and not weight.requires_grad:
            owner, _, attribute = name.rpartition(".")
            setattr(value.get_submodule(owner), attribute, shared[name])


def first_difference(a: PreTrainedModel, b: PreTrainedModel) -> str | None:
    """The name of a weight that only one of two networks has, or that is not the same in both; None if all are."""
    own, others = a.state_dict(), b.state_dict()
    for name in sorted(own.keys() | others.keys()):
        if name not in own or name not in others or own[name].shape != others[name].shape:
            return name
        if own[name].dtype != others[name].dtype or not torch.equal(own[name], others[name].to(own[name].device)):
            return name
    return None


def classifier_config(policy: PreTrainedModel) -> PretrainedConfig:
    """The config of the value model that the trunk of `policy` is under a head of its own.

    Raises ValueError for an architecture of which transformers has no classifier with the same trunk.
    """
    config = as_value_config(without_quantization(policy.config))
    classifier = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if classifier is None or classifier.base_model_prefix != policy.base_model_prefix:
        raise ValueError(
            f"transformers has no sequence classifier on the trunk of {type(policy).__name__}, the form that a value "
            "model is saved in: choose another architecture (Llama, Qwen2, GPT-2, Mistral, ...)"
        )
    config.architectures = [classifier.__name__]
    return config
