"""Rows of tokens that a causal language model reads with a key/value cache: each prompt once, then token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer


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
        # A row that has ended and waits to be dropped may run past the last position; what it reads means nothing.
        position = self.position.clamp(max=self.model.config.max_position_embeddings - 1)
        self.logits = self.model(
            input_ids=token_ids[:, None],
            attention_mask=self.is_token,
            position_ids=position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.position = self.position + 1

    def join(self, other: CachedRows) -> None:
        """Take the rows of `other`, of the same model, in after these; the fewer columns are padded on the left."""
        n_columns = max(self.is_token.shape[1], other.is_token.shape[1])
        self.is_token = torch.cat([_padded(rows.is_token, n_columns, dim=1) for rows in (self, other)])
        for layer, joining in zip(self.cache.layers, other.cache.layers, strict=True):
            both = [_keys_and_values(layer), _keys_and_values(joining)]
            n_kept = max(keys.shape[-2] for keys, _ in both)  # a sliding window keeps its last columns alone
            layer.keys = torch.cat([_padded(keys, n_kept, dim=-2) for keys, _ in both])
            layer.values = torch.cat([_padded(values, n_kept, dim=-2) for _, values in both])
            _set_length(layer, n_columns)
        self.logits = torch.cat([self.logits, other.logits])
        self.position = torch.cat([self.position, other.position])

    def drop_padding(self) -> None:
        """Drop the columns that are padding in every row, so that rows may join and leave for ever."""
        n_columns = int(self.position.max())
        if n_columns == self.is_token.shape[1]:
            return
        self.is_token = self.is_token[:, -n_columns:]
        for layer in self.cache.layers:
            keys, values = _keys_and_values(layer)
            layer.keys, layer.values = keys[..., -n_columns:, :], values[..., -n_columns:, :]
            _set_length(layer, n_columns)


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


def require_joinable(model: PreTrainedModel) -> None:
    """Raises ValueError for a model whose rows keep something else than keys and values, one column per token."""
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    strange = sorted(kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer})
    if strange or model.config.get_text_config().to_dict().get("attention_chunk_size"):
        raise ValueError(
            f"{type(model).__name__} keeps {', '.join(strange) or 'chunks of attention'}: its rows cannot be joined "
            "with rows of other lengths. Needed full or sliding-window attention in every layer"
        )


def _padded(tensor: Tensor, n: int, *, dim: int) -> Tensor:
    """Zeros before the entries of this dimension, up to n of them."""
    n_missing = n - tensor.shape[dim]
    if n_missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = n_missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim)


def _keys_and_values(layer: CacheLayerMixin) -> tuple[Tensor, Tensor]:
    """[R, heads, columns, d] of a layer that has read something."""
    assert layer.keys is not None and layer.values is not None
    return layer.keys, layer.values


def _set_length(layer: CacheLayerMixin, n_columns: int) -> None:
    """Tell the layer how many columns it has seen, where it counts them."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = n_columns
