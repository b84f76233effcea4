"""A policy whose output embedding has two rows more: one is a value head, the other is zero."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

N_SPARE = 2  # the value's row, then a row of zeros


@dataclass(frozen=True, slots=True)
class Variant:
    """How the policy with a spare row is stored and served."""

    dtype: str  # of the trunk
    is_tied: bool  # the output embedding is the input embedding
    head_dtype: str  # of the product with the output embedding: "model", which is the trunk's, or "float32"
    logprobs_mode: str  # vLLM's: what it returns of an id

    @property
    def name(self) -> str:
        tied = "tied" if self.is_tied else "untied"
        return f"{self.dtype}, {tied}, head {self.head_dtype}, {self.logprobs_mode}"


def write_policy(source: str, folder: Path, value_row: Tensor, *, is_tied: bool, dtype: str) -> int:
    """The policy at `source` with its spare rows. Returns the id of the value's row; the zero row is the next."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    n_ids = model.config.vocab_size
    model.resize_token_embeddings(n_ids + N_SPARE, mean_resizing=False)
    rows = torch.stack([value_row.float(), torch.zeros_like(value_row, dtype=torch.float32)])
    if not is_tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    with torch.no_grad():
        model.get_output_embeddings().weight[n_ids:] = rows
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return n_ids


@torch.no_grad()
def hidden_states(source: str, sequences: list[list[int]], *, dtype: str) -> list[Tensor]:
    """What the output embedding is applied to, one [T, H] float64 per sequence, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype)).model.eval()
    return [model(torch.tensor([ids])).last_hidden_state[0].double() for ids in sequences]


@torch.no_grad()
def log_pi(source: str, sequences: list[list[int]], hidden: list[Tensor]) -> list[Tensor]:
    """log π of each token but the first, one [T - 1] per sequence, of the policy with these hidden states."""
    embedding = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).get_output_embeddings().weight
    return [
        torch.log_softmax(h[:-1].float() @ embedding.T, dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        for ids, h in zip(sequences, hidden, strict=True)
    ]
