"""Rows that share beginnings, tiny models to read them, and what reading each alone gives."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.models.tiny_models import VOCAB, config_of

Row = tuple[int, ...]
MOST = 40  # tokens of a row


def policy(family: str, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Weights five times the usual width: attention is far from uniform, so that a wrong mask shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family), attn_implementation=attention).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(5.0)
    return model.to(dtype)


@torch.no_grad()
def hidden_alone(trunk: PreTrainedModel, row: Row) -> Tensor:
    """[n, D] of one unpadded row, read anew."""
    ids = torch.tensor([row])
    return trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state[0]


def grown_rows(rng: random.Random, n_calls: int, n_rows: int = 5) -> Iterable[list[Row]]:
    """Calls of rows that go on from beginnings of earlier rows; of four tokens, so that siblings often agree."""
    earlier: list[Row] = [()]
    for _ in range(n_calls):
        rows = []
        for _ in range(rng.randint(1, n_rows)):
            start = rng.choice(earlier)
            start = start[: rng.choice((len(start), rng.randint(0, len(start))))]
            row = start + tuple(rng.randrange(4) + 3 for _ in range(rng.randint(0 if start else 1, 8)))
            rows.append(row[:MOST])
        earlier += rows
        yield rows


def prefixes(rows: Iterable[Row]) -> set[Row]:
    return {row[: t + 1] for row in rows for t in range(len(row))}


def rounding(family: str) -> float:
    """How far float32 hidden states lie from those in float64 when a row is read alone: what any order of sums may do.

    Four times the worst of twenty rows: the cache sums in another order, so that both errors may add up, and its rows
    are others.
    """
    rng = random.Random(7)
    single, double = policy(family), policy(family, dtype=torch.float64)
    rows = [tuple(rng.randrange(VOCAB) for _ in range(MOST)) for _ in range(20)]
    return 4 * max(
        (hidden_alone(single.base_model, row).double() - hidden_alone(double.base_model, row)).abs().max().item()
        for row in rows
    )
