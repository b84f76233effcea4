"""The value model: a Hugging Face sequence classifier with one label, read at every position.

Saved as `*ForSequenceClassification` with `score.weight`, so transformers and vLLM load it as it is: pooling the last
token gives V of the whole prefix.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel


def value_model_from_policy(policy_path: str | Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of the policy's trunk under a zero head, so V = 0 at step 0 (paper: full separate copy, no LM head)."""
    config = AutoConfig.from_pretrained(policy_path, num_labels=1)
    config.problem_type = "regression"
    model = AutoModelForSequenceClassification.from_pretrained(policy_path, config=config, dtype=dtype)
    model.score = _float32_head(model.score)
    nn.init.zeros_(model.score.weight)
    return model


def load_value_model(path: str | Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load a trained value model; a missing or non-finite head is an error, never a fresh initialisation.

    Raises ValueError naming the keys that are missing, or that the head holds NaN or Inf.
    """
    model, info = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"{path} lacks {sorted(info['missing_keys'])}: a value model needs `score.weight`. "
            f"Is this a policy? Start one from a policy with value_model_from_policy."
        )
    if model.config.num_labels != 1:
        raise ValueError(f"{path} has num_labels={model.config.num_labels}, a value model has 1")
    if not torch.isfinite(model.score.weight).all():
        raise ValueError(f"{path}: score.weight holds NaN or Inf; the run that wrote it had diverged")
    model.score = _float32_head(model.score)
    return model


def values_at_every_position(model: nn.Module, input_ids: Tensor, is_token: Tensor) -> Tensor:
    """V of each prefix ids[:, : t + 1], [B, L] float32; positions on padding hold no meaning."""
    trunk = getattr(model, model.base_model_prefix)
    hidden = trunk(input_ids=input_ids, attention_mask=is_token.long(), use_cache=False).last_hidden_state
    return model.score(hidden.to(model.score.weight.dtype)).squeeze(-1)


def _float32_head(head: nn.Module) -> nn.Linear:
    """The same weight, held in float32: bfloat16 near V = 1 has steps of 2^-8."""
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise TypeError(f"expected the value head to be a Linear without bias, found {head}")
    return head if head.weight.dtype == torch.float64 else head.float()
