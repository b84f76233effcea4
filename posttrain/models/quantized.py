"""Frozen weights in 4 bits under adapters that are trained: QLoRA (arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

FSDP = "ACCELERATE_USE_FSDP"  # `accelerate launch` sets it to true
QUANTIZATION = "quantization_config"  # transformers' name for it, on configs and in from_pretrained


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Linear layers of the body in 4-bit NormalFloat with doubly quantised constants, computed in `dtype`.

    Raises ImportError without bitsandbytes, and ValueError under engines that would shard packed 4-bit weights.
    """
    if find_spec("bitsandbytes") is None:
        raise ImportError("load_in_4bit needs bitsandbytes: pip install 'posttrain[qlora]'")
    is_fsdp_enabled = os.environ.get(FSDP) == "true"
    for engine, is_enabled in (("DeepSpeed ZeRO-3", is_deepspeed_zero3_enabled()), ("FSDP", is_fsdp_enabled)):
        if is_enabled:
            raise ValueError(
                f"load_in_4bit packs two weights into a byte, which {engine} cannot shard: take DDP, ZeRO-1 or ZeRO-2"
            )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether weights of `model` are held in 4 bits."""
    return hasattr(model.config, QUANTIZATION)


def without_quantization(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of the config for the same network with ordinary weights."""
    plain = copy.deepcopy(config)
    if hasattr(plain, QUANTIZATION):
        delattr(plain, QUANTIZATION)
    return plain
