"""Random two-layer models with keys and values of several kinds, and what counts their forward passes."""

from __future__ import annotations

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)


def model_of(family: str, dtype: torch.dtype, n_vocab: int) -> PreTrainedModel:
    """Random weights, scaled up so that some tokens are much likelier than others."""
    torch.manual_seed(3)
    ends = {"vocab_size": n_vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3}
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **ends)).to(dtype)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    if family == "sliding":
        return MistralForCausalLM(MistralConfig(sliding_window=8, **shape, **heads, **ends)).to(dtype)
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, **ends)).to(dtype)


class TurnsByHand:
    """In place of the model thread: a test takes the turns, so that what happens between two is no accident."""

    def __init__(self) -> None:
        self.workers = []

    def add(self, worker) -> None:
        self.workers.append(worker)

    def wake(self) -> None:
        pass


class CountedForwards:
    """The rows and new columns of every forward pass of a model."""

    def __init__(self, model) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model, args, kwargs) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))
