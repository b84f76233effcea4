"""A random policy and a random value model that vLLM takes on a CPU too, small enough to start at once."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerBase

HIDDEN = 64
N_POSITIONS = 256


def tiny_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM's CPU attention has
        max_position_embeddings=N_POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.15,
    )


def write_policy(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    torch.manual_seed(3)
    LlamaForCausalLM(tiny_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_value_model(folder: Path, tokenizer: PreTrainedTokenizerBase, *, head_scale: float = 1.0) -> Path:
    """Trunk in bfloat16 and head in float32, as ours are saved; the head's entries are ±1/8, so its norm is 1."""
    torch.manual_seed(4)
    config = tiny_config(tokenizer)
    config.num_labels = 1
    model = LlamaForSequenceClassification(config).bfloat16()
    head = (torch.randint(0, 2, (1, HIDDEN)) * 2 - 1) / HIDDEN**0.5
    model.score.weight = torch.nn.Parameter(head * head_scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
