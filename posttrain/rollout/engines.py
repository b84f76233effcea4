"""The engine that runs a policy, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from posttrain.data.encode import encode_prompt
from posttrain.models.loading import device_named
from posttrain.models.policy import load_policy
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.vllm_engine import VllmEngine
from posttrain.sampling import SamplingEngine
from posttrain.schema import Problem

EngineName = Literal["transformers", "vllm"]


def load_engine(
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    engine: EngineName,
    dtype: str,
    device: str,
    batch_size: int,
    max_tokens: Callable[[], int],
) -> SamplingEngine:
    """The engine of this name on a model folder or Hub id.

    `max_tokens` gives the bound of prompt and completion together. vLLM alone asks: it reserves room for its longest
    sequence, and a model's own limit may be far more than is needed. `device` and `batch_size` are of transformers.
    """
    if engine == "vllm":
        n_positions = AutoConfig.from_pretrained(model).max_position_embeddings
        return VllmEngine(model, dtype=dtype, max_model_len=min(max_tokens(), n_positions))
    policy = load_policy(model, dtype=getattr(torch, dtype))
    return TransformersEngine(policy, tokenizer, batch_size=batch_size, device=device_named(device))


def longest_sequence(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> int:
    """Tokens of the longest prompt with the longest answer that it may get."""
    return max(len(encode_prompt(problem.prompt, tokenizer)) for problem in problems) + max_new_tokens
