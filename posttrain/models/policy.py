"""Causal language models as policies, and their frozen references."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from posttrain.models.dropout import switch_dropout_off

# What architectures call a transform between the output head and the logits, with the value that makes it do nothing.
LOGIT_TRANSFORMS = {
    "final_logit_softcapping": None,  # Gemma 2 and later
    "logit_scale": 1.0,  # Cohere
    "logits_scaling": 1.0,  # Granite
    "lm_head_multiplier": 1.0,  # Falcon-H1
}


def load_policy(path: str | Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal LM from a folder or Hub id in `dtype`, dropout off: π must equal π_ref at step 0.

    Raises ValueError when weights are missing from the files, or when the architecture transforms the logits after its
    output head, which the chunked log-probabilities would leave out.
    """
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"{path} lacks {sorted(info['missing_keys'])}, which would start from random numbers: "
            "is this a value model, or an adapter without its base?"
        )
    _refuse_transformed_logits(model.config)
    switch_dropout_off(model)
    return model


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference π_ref: same weights, no gradient, evaluation mode."""
    reference = copy.deepcopy(policy)
    reference.requires_grad_(False)
    return reference.eval()


def _refuse_transformed_logits(config: PretrainedConfig) -> None:
    settings = config.get_text_config().to_dict()
    for name, neutral in LOGIT_TRANSFORMS.items():
        if settings.get(name, neutral) != neutral:
            raise ValueError(
                f"{config.model_type} sets {name}={settings[name]}: its logits are not output_head(last_hidden_state) "
                f"alone, which is what score_tokens computes. Use an architecture without it (needed: {name}={neutral})."
            )
