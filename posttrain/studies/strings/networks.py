"""Tiny causal language models over digits: a policy, and a value of every prefix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from posttrain.studies.strings.task import N_DIGITS

START = 0  # the prompt: one token, whatever it is


def tiny_llama(*, hidden_size: int, n_layers: int, n_positions: int) -> LlamaConfig:
    config = LlamaConfig(
        vocab_size=N_DIGITS,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=n_positions,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    config._attn_implementation = "eager"  # the fastest for rows of a few tokens
    return config


class StringPolicy(nn.Module):
    """π(d_t | d_<t); its head starts at 0, so it begins as the uniform reference."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.model = LlamaForCausalLM(config)
        nn.init.zeros_(self.model.lm_head.weight)

    def forward(self, strings: Tensor) -> Tensor:
        """[B, k, 10] log π of every digit at every place of `strings` [B, k]; the last digit is not read."""
        return self.model(input_ids=_prefixes(strings)).logits.log_softmax(-1)

    @torch.no_grad()
    def sample(self, n: int, n_digits: int, generator: torch.Generator) -> Tensor:
        """[n, k] strings, digit by digit."""
        tokens = torch.full((n, 1), START)
        for _ in range(n_digits):
            probabilities = self.model(input_ids=tokens).logits[:, -1].softmax(-1)
            tokens = torch.cat((tokens, torch.multinomial(probabilities, 1, generator=generator)), dim=-1)
        return tokens[:, 1:]

    @torch.no_grad()
    def distribution(self, strings: Tensor) -> Tensor:
        """[10^k] π of all strings, given in the order of their numbers; one row is read for each ten of them."""
        stems = strings[::N_DIGITS]
        logp = self(stems).double()
        before = logp[:, :-1].gather(-1, stems[:, :-1, None])[..., 0].sum(-1)
        return (before[:, None] + logp[:, -1]).view(-1).exp()


class StringValue(nn.Module):
    """V(d_<t), a network of its own; 0 at the start of training."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, strings: Tensor) -> Tensor:
        """[B, k] V of the prefix before each digit."""
        return self.score(self.model(input_ids=_prefixes(strings)).last_hidden_state)[..., 0]


def _prefixes(strings: Tensor) -> Tensor:
    return torch.cat((torch.full_like(strings[:, :1], START), strings[:, :-1]), dim=-1)
