"""The value model: a Hugging Face sequence classifier with one label, read at every position.

Saved as `*ForSequenceClassification` with `score.weight`, so transformers and vLLM load it as it is: pooling the last
token gives V of the whole prefix.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file

from posttrain.models.loading import VALUE_HEAD, no_load_report, own_memory, require_finite, switch_dropout_off
from posttrain.models.packing import HiddenStates, padded_hidden
from posttrain.pretrained import require_model_path


class ValueHead(nn.Linear):
    """hidden -> V without bias, in float32 whatever the trunk, the engine or autocast does.

    bfloat16 has steps of 2^-8 below V = 1, as coarse as the differences a search ranks by.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[1], 1, bias=False)
        self.weight = nn.Parameter(weight if weight.dtype == torch.float64 else weight.float())

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(dtype), self.weight.to(dtype))


def value_model_from_policy(
    policy_path: str | Path, *, dtype: torch.dtype, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """A copy of the policy's trunk under a zero head, so V = 0 at step 0 (paper: full separate copy, no LM head).

    With a `quantization` (see `four_bits`) the linear layers of the trunk are quantised and cannot be trained.

    Raises ValueError when any weight of the trunk is missing from the files.
    """
    require_model_path(policy_path)
    config = as_value_config(AutoConfig.from_pretrained(policy_path))
    with no_load_report():  # it would warn that the head is missing, which is what was asked for
        model, info = AutoModelForSequenceClassification.from_pretrained(
            policy_path, config=config, dtype=dtype, quantization_config=quantization, output_loading_info=True
        )
    missing = sorted(set(info["missing_keys"]) - {VALUE_HEAD})
    if missing:
        raise ValueError(f"{policy_path} lacks {missing}: the value model would start from a random trunk")
    require_score_layer(model)
    # A fresh tensor, not zeros_ on the loaded one: under ZeRO-3 the loaded one is an empty shard.
    model.score = ValueHead(torch.zeros(1, config.get_text_config().hidden_size, dtype=dtype))
    require_finite(model, policy_path)
    own_memory(model)
    switch_dropout_off(model)
    return model


def load_value_model(path: str | Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load a trained value model; a missing or non-finite head is an error, never a fresh initialisation.

    The trunk is held in `dtype`, the head exactly as it was saved.
    Raises ValueError naming the keys that are missing, or that the head holds NaN or Inf.
    """
    require_model_path(path)
    n_labels = AutoConfig.from_pretrained(path).num_labels
    model, info = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if VALUE_HEAD in missing:
        raise ValueError(
            f"{path} lacks {missing}: a value model needs `{VALUE_HEAD}`. Is this a policy? "
            "For training leave value_model out: one is started from the policy"
        )
    if missing:
        raise ValueError(f"{path} lacks {missing}, which would start from random numbers: is the folder whole?")
    if n_labels != 1:
        raise ValueError(f"{path} has num_labels={n_labels}, a value model has 1: is this a classifier?")
    require_score_layer(model)
    weight = _stored_head(path)
    if not torch.isfinite(weight).all():
        raise ValueError(f"{path}: {VALUE_HEAD} holds NaN or Inf; the run that wrote it had diverged")
    model.score = ValueHead(weight)
    require_finite(model, path)
    own_memory(model)
    switch_dropout_off(model)
    return model


def values_at_every_position(
    model: PreTrainedModel, input_ids: Tensor, is_token: Tensor, *, hidden_states: HiddenStates = padded_hidden
) -> Tensor:
    """V of each prefix ids[:, : t + 1], [B, L] float32; positions on padding hold no meaning."""
    return model.score(hidden_states(model, input_ids, is_token)).squeeze(-1)


def as_value_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config of a policy, changed in place to that of a value model: one label, a regression."""
    config.num_labels = 1
    config.problem_type = "regression"
    return config


def require_score_layer(model: PreTrainedModel) -> None:
    """Raises ValueError for a classifier whose head is not one matrix on the last hidden state."""
    head = model._modules.get("score")
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(
            f"{type(model).__name__} has {head} as `score`, needed a Linear without bias: "
            "choose a decoder whose sequence classifier reads the last token (Llama, Qwen2, GPT-2, Mistral, ...)"
        )


def _stored_head(path: str | Path) -> Tensor:
    """The head in the dtype it was saved in; from_pretrained would round it to the trunk's."""
    folder = Path(cached_file(path, "config.json")).parent
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if VALUE_HEAD in tensors.keys():  # noqa: SIM118 - safe_open has no __contains__
                return tensors.get_tensor(VALUE_HEAD)
    raise ValueError(f"{path}: no safetensors file holds `{VALUE_HEAD}`; save the value model with save_pretrained")
