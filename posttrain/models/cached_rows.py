"""Rows of tokens that a causal language model reads with a key/value cache: each prompt once, then token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig


class CausalNetwork(Protocol):
    """A causal language model of transformers, or what is called and answers like one."""

    @property
    def config(self) -> PretrainedConfig: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Cache,
        use_cache: bool,
        logits_to_keep: int = 0,
    ) -> Any: ...


@dataclass(slots=True)
class CachedRows:
    """R rows, padded on the left to L columns; L grows by one with every token."""

    model: CausalNetwork
    cache: DynamicCache
    logits: Tensor  # [R, V] of the next token
    is_token: Tensor  # [R, L] int64, 0 on padding
    position: Tensor  # [R] int64, of the next token

    def select(self, rows: Tensor) -> None:
        """Keep these rows, int64, in this order; one that is named twice becomes two, one that is not is dropped."""
        self.cache.batch_select_indices(rows)
        self.logits, self.is_token, self.position = self.logits[rows], self.is_token[rows], self.position[rows]

    def append(self, token_ids: Tensor) -> None:
        """Read one more token of every row, [R] int64."""
        self.is_token = torch.nn.functional.pad(self.is_token, (0, 1), value=1)
        self.logits = self.model(
            input_ids=token_ids[:, None],
            attention_mask=self.is_token,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.position = self.position + 1


def read_prompts(model: CausalNetwork, prompts: Sequence[Sequence[int]]) -> CachedRows:
    """One row per prompt, none of them empty."""
    rows = [list(prompt) for prompt in prompts]
    n_columns = max(map(len, rows))
    pad = rows[0][0]  # any id that the model knows: a padded column is never attended to
    device = model.device
    input_ids = torch.tensor([[pad] * (n_columns - len(row)) + row for row in rows], device=device)
    n_tokens = torch.tensor([len(row) for row in rows], device=device)
    position = torch.arange(n_columns, device=device) - (n_columns - n_tokens)[:, None]
    is_token = (position >= 0).long()
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=input_ids,
        attention_mask=is_token,
        position_ids=position.clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return CachedRows(model, cache, logits, is_token, n_tokens)
