"""Random two-layer policies of three families, written to a folder, and batches for them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, Qwen2Config

from posttrain.models.actor_critic import ActorCritic
from posttrain.models.policy import frozen_copy, load_policy
from posttrain.models.value import value_model_from_policy
from posttrain.schema import TokenBatch

VOCAB = 37
PAD = 0  # never sampled below: transformers' classifier takes the last token that is not PAD
FAMILIES = (
    "llama",
    "qwen2",
    "gpt2",
)  # untied; tied with biased projections; tied with learned positions and LayerNorm


def config_of(family: str, *, dropout: float = 0.0, vocab_size: int = VOCAB) -> PretrainedConfig:
    ends = {"vocab_size": vocab_size, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        rates = {"attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout}
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **rates, **ends)
    kind, is_tied = {"llama": (LlamaConfig, False), "qwen2": (Qwen2Config, True)}[family]
    return kind(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=dropout,
        tie_word_embeddings=is_tied,
        **ends,
    )


def write_policy(folder: Path, family: str, *, dropout: float = 0.0, vocab_size: int = VOCAB) -> Path:
    """Weights five times the usual width, so that logits are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, dropout=dropout, vocab_size=vocab_size))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(5.0)
    model.save_pretrained(folder)
    return folder


def actor_critic(folder: Path, *, dtype: torch.dtype = torch.float32, chunk_size: int = 5) -> ActorCritic:
    """As training starts: value head zero, reference equal to the policy."""
    policy = load_policy(folder, dtype=dtype)
    return ActorCritic(
        policy, value_model_from_policy(folder, dtype=dtype), frozen_copy(policy), chunk_size=chunk_size
    )


def trained(model: ActorCritic) -> ActorCritic:
    """As after some training: policy and head moved off the start by seeded noise."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (*model.policy.parameters(), model.value.score.weight):
            noise = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
            weight.add_((0.1 * noise).to(weight.dtype))
    return model


def batch(lengths: tuple[int, ...] = (9, 6, 11), *, n_columns: int = 11) -> TokenBatch:
    """Random rows whose first three tokens are a prompt; the terminal reward of row b is b + 1."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCAB, (len(lengths), n_columns), generator=generator)
    is_token = torch.arange(n_columns) < torch.tensor(lengths)[:, None]
    position = torch.arange(n_columns - 1)
    is_action = is_token[:, 1:] & (position >= 2)
    is_last = position == torch.tensor(lengths)[:, None] - 2
    return TokenBatch(
        input_ids=torch.where(is_token, ids, PAD),
        is_token=is_token,
        is_action=is_action,
        is_state=is_action,
        reward=torch.where(is_last, torch.arange(1.0, len(lengths) + 1)[:, None], 0.0),
        row_id=torch.arange(len(lengths)),
    )
