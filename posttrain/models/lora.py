"""Low-rank adapters (LoRA, arXiv 2106.09685): a network rests, two thin matrices per linear layer learn.

An adapted linear layer computes  x (W + alpha / rank · B A)ᵀ  with W frozen. A is random and B zero at step 0, so the
model starts as it was. Saved networks hold the sum in the place of W and need neither this module nor peft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

ADAPTER = "default"  # peft's name for the first adapter of a model
CONSTANTS = ".base_layer.weight."  # what bitsandbytes keeps beside a weight in 4 bits
A, B = (f".lora_{side}.{ADAPTER}.weight" for side in "AB")


def add_lora(value_model: PreTrainedModel, *, rank: int, alpha: float, seed: int) -> None:
    """Freeze the trunk of `value_model` in place and put an adapter on each of its linear layers; the head is trained.

    Adapters of a bfloat16 trunk are float32. Raises ImportError without peft.
    """
    _inject(value_model, "SEQ_CLS", rank=rank, alpha=alpha, seed=seed)
    value_model.score.requires_grad_(True)


def add_lora_to_policy(policy: PreTrainedModel, *, rank: int, alpha: float, seed: int) -> None:
    """Freeze `policy` in place, embeddings and output head too, and put an adapter on each linear layer of its body.

    Adapters of a bfloat16 policy are float32. Raises ImportError without peft.
    """
    _inject(policy, "CAUSAL_LM", rank=rank, alpha=alpha, seed=seed)


def _inject(model: PreTrainedModel, task: str, *, rank: int, alpha: float, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model  # an optional dependency
    except ImportError as error:
        raise ImportError("LoRA adapters need peft: pip install 'posttrain[peft]'") from error
    config = LoraConfig(
        task_type=task,  # tells "all-linear" which head to leave out
        target_modules="all-linear",
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] - typed int, used as a factor
        lora_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the same A on every rank and after a resume
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:  # its steps would swallow small updates
            parameter.data = parameter.data.float()


def has_lora(model: PreTrainedModel) -> bool:
    """Whether `model` has adapters."""
    return any(name.endswith(A) for name, _ in model.named_parameters())


def merge_lora(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights`, a gathered state dict of `model`, under the names of the plain model and with W + alpha / rank · B A.

    Nothing in `model` changes. The sum is taken in the wider of the two dtypes and rounded to that of W; a W in 4 bits
    is first brought to the dtype that its products are computed in.
    """
    kept = {name: tensor for name, tensor in weights.items() if ".lora_" not in name and CONSTANTS not in name}
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in kept.items()}
    for adapted in [name.removesuffix(A) for name in weights if name.endswith(A)]:
        layer: Any = model.get_submodule(adapted)  # peft's, which knows its scale and the layout of its weight
        delta = layer.scaling[ADAPTER] * (weights[adapted + B] @ weights[adapted + A])
        if layer.fan_in_fan_out:  # GPT-2's
            delta = delta.T
        frozen = _frozen_weight(layer, weights[f"{adapted}.base_layer.weight"])
        plain[f"{adapted}.weight"] = (frozen + delta).to(frozen.dtype)
    return plain


def _frozen_weight(layer: Any, weight: Tensor) -> Tensor:
    """The weight under the adapters of `layer`, as ordinary numbers."""
    quantized = layer.base_layer.weight
    if not hasattr(quantized, "quant_state"):
        return weight
    from peft.utils.integrations import dequantize_bnb_weight  # an optional dependency, as is bitsandbytes

    return dequantize_bnb_weight(quantized, state=quantized.quant_state)
