"""Causal language models as policies, and their frozen references."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_policy(path: str | Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal LM from a folder or Hub id in `dtype`, dropout off: π must equal π_ref at step 0."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    _switch_dropout_off(model)
    return model


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference π_ref: same weights, no gradient, evaluation mode."""
    reference = copy.deepcopy(policy)
    reference.requires_grad_(False)
    return reference.eval()


def _switch_dropout_off(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.0
