"""Causal language models as policies, and their frozen references."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from posttrain.models.loading import VALUE_HEAD, own_memory, require_finite, switch_dropout_off
from posttrain.pretrained import require_model_path

# What architectures call a transform between the output head and the logits, with the value that makes it do nothing.
LOGIT_TRANSFORMS = {
    "final_logit_softcapping": None,  # Gemma 2 and later
    "logit_scale": 1.0,  # Cohere
    "logits_scaling": 1.0,  # Granite
    "lm_head_multiplier": 1.0,  # Falcon-H1
}


def load_policy(
    path: str | Path, *, dtype: torch.dtype, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """Load a causal LM from a folder or Hub id in `dtype`, dropout off: π must equal π_ref at step 0.

    With a `quantization` (see `four_bits`) the linear layers of its body are quantised and cannot be trained.

    Raises FileNotFoundError without a folder. Raises ValueError when the files hold a value model or lack weights, or
    when the architecture transforms the logits after its output head, which the chunked log-probabilities would leave
    out.
    """
    require_model_path(path)
    model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues] - a pair, by the flag
        path, dtype=dtype, quantization_config=quantization, output_loading_info=True
    )
    if VALUE_HEAD in info["unexpected_keys"]:
        raise ValueError(f"{path} holds `{VALUE_HEAD}`: this is a value model, needed a policy (a causal LM)")
    if info["missing_keys"]:
        raise ValueError(f"{path} lacks {sorted(info['missing_keys'])}, which would start from random numbers")
    require_plain_logits(model.config)
    require_finite(model, path)
    own_memory(model)
    switch_dropout_off(model)
    return model


def load_reference(path: str | Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """The reference π_ref from its files: no gradient, evaluation mode. Raises what `load_policy` raises."""
    reference = load_policy(path, dtype=dtype)
    reference.requires_grad_(False)
    return reference.eval()


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference π_ref: same weights, no gradient, evaluation mode.

    For a policy that is whole in this process; under ZeRO-3 its weights are shards that cannot be copied, so there use
    `load_reference`.
    """
    reference = copy.deepcopy(policy)
    reference.requires_grad_(False)
    return reference.eval()


def require_plain_logits(config: PretrainedConfig) -> None:
    """Raises ValueError for a model whose logits are not its output head on the final hidden states."""
    settings = config.get_text_config().to_dict()
    for name, neutral in LOGIT_TRANSFORMS.items():
        if settings.get(name, neutral) != neutral:
            raise ValueError(
                f"{config.model_type} sets {name}={settings[name]}: its logits are not output_head(last_hidden_state) "
                f"as score_tokens computes them. Needed {name}={neutral}, or an architecture without it."
            )
