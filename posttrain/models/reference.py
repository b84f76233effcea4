"""Where the reference's share of a loss comes from: a network beside the policy, the policy itself, or files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch
from transformers import PreTrainedModel

from posttrain.models.lora import has_lora


class ReferenceFrom(StrEnum):
    """What stands in for π_ref while a policy is trained; the exact KL needs its final hidden states and its head."""

    LIVE = "live"  # a frozen network in memory, run on every batch
    ADAPTERS_OFF = "adapters_off"  # the policy without its LoRA adapters: no second body in memory, run on every batch
    CACHED_LOG_PROBS = "cached_log_probs"  # log π_ref of each action from files: no network, and no exact KL
    CACHED_HIDDEN = "cached_hidden"  # final hidden states before each action from files: the head alone in memory


@contextmanager
def adapters_off(policy: PreTrainedModel) -> Iterator[None]:
    """Run `policy` as it was before `add_lora_to_policy`; its adapters are on again, and trained, afterwards."""
    layers = _adapted_layers(policy)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def require_adapters(policy: PreTrainedModel) -> None:
    """Raises ValueError when `policy` has no adapters that could be switched off."""
    if not has_lora(policy):
        raise ValueError(
            "the reference is the policy with its adapters off, but the policy has none: set policy_lora_rank"
        )


def _adapted_layers(policy: PreTrainedModel) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer  # an optional dependency

    return [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]


def frozen_head(head: torch.nn.Module) -> torch.nn.Linear:
    """A copy of a reference's output head, of its own memory and without gradient.

    Raises ValueError for a head that is no plain nn.Linear, such as a quantised one.
    """
    if type(head) is not torch.nn.Linear:
        raise ValueError(f"the reference's output head is a {type(head).__name__}, needed a plain nn.Linear")
    copy = torch.nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    copy.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    if head.bias is not None:
        copy.bias = torch.nn.Parameter(head.bias.detach().clone(), requires_grad=False)
    return copy
