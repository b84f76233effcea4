"""A key/value cache that outlives its batch: of rows that begin alike, a trunk reads the common tokens once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from posttrain.models.cached_rows import CachedRows
from posttrain.models.chains import Chain, Group, forward_passes, pass_inputs
from posttrain.models.packing import PER_ROW, why_rows_would_mix
from posttrain.models.token_trie import ROOT, TokenTrie, n_common

_TAKE_MASKS = ("sdpa", "eager", PER_ROW)  # attention that adds a mask [G, 1, N, n + N] to its logits
_DRIFTING_ROTATIONS = {"dynamic", "longrope"}  # their frequencies change with the length of the row

Layers = list[tuple[Tensor, Tensor]]  # keys and values


@dataclass(frozen=True, slots=True)
class HiddenRead:
    """Final hidden states, and what it took to know them."""

    hidden: Tensor  # [R, D] of the last token of each row, or of every token of one
    n_tokens_read: list[int]  # of each row; a token that several of them begin with counts for one


@dataclass(frozen=True, slots=True)
class RowsRead:
    """R rows that were read to their ends, padded on the left to L columns."""

    hidden: Tensor  # [R, D] final hidden states of the last tokens
    cache: DynamicCache  # keys and values, [R, heads, L, d] in every layer
    is_token: Tensor  # [R, L] int64, 0 on padding
    position: Tensor  # [R] int64, of the next token

    def by(self, model: PreTrainedModel) -> CachedRows:
        """The same rows for `model`, whose trunk read them, to go on decoding; its logits are a head on `hidden`."""
        head = model.get_output_embeddings()
        assert head is not None  # a causal language model has one
        return CachedRows(model, self.cache, head(self.hidden), self.is_token, self.position)


class PrefixCache:
    """Keys, values and final hidden states of the tokens that a trunk has read, at most `max_tokens` of them.

    Every prefix is read once, by the first row that has it. When room is short, tokens that were used least recently
    make room first; rows of one call that do not fit together are read in lots, so that any room for the longest row
    is enough.

    `trunk` is a model without its head (`model.base_model`), in evaluation mode whenever it reads. The memory of all
    `max_tokens` is taken at the start. Weights that change do not show: call `clear` after it. One thread at a time.

    Raises ValueError for a trunk that reads a token by something else than keys and values of those before it.
    """

    def __init__(self, trunk: PreTrainedModel, *, max_tokens: int) -> None:
        _require_plain_keys_and_values(trunk)
        self.trunk = trunk
        self.max_tokens = max_tokens
        self.n_tokens_read = 0
        self._trie = TokenTrie(max_tokens)
        self._has_hidden = np.zeros(max_tokens + 1, bool)  # by slot
        self._pools, self._hidden = _allocate(trunk, max_tokens + 1)

    @property
    def n_tokens(self) -> int:
        """Tokens stored now."""
        return self._trie.n_tokens

    @torch.no_grad()
    def last_hidden(self, rows: Sequence[Sequence[int]]) -> HiddenRead:
        """Final hidden states at the last token of each of R rows.

        Raises ValueError for an empty row, or one of more than max_tokens.
        """
        hidden = self._hidden.new_empty(len(rows), self._hidden.shape[-1])
        n_tokens_read = [0] * len(rows)
        for lot in self._lots(rows):
            paths, n_read = self._read([rows[i] for i in lot])
            hidden[lot] = self._hidden[[path[-1] for path in paths]]
            for i, n in zip(lot, n_read, strict=True):
                n_tokens_read[i] = n
        return HiddenRead(hidden, n_tokens_read)

    @torch.no_grad()
    def every_hidden(self, row: Sequence[int]) -> HiddenRead:
        """Final hidden states at every token of one row. Raises what `last_hidden` raises."""
        self._require_room([row])
        self._trie.begin()
        path = self._trie.find(row)
        unknown = np.flatnonzero(~self._has_hidden[path])
        n_again = 0
        if len(unknown):
            first = int(unknown[0])
            self._run([Chain(path[:first], path[first:], list(row[first : len(path)]))])
            n_again = len(path) - first
        (path,), (n_read,) = self._read([row])
        return HiddenRead(self._hidden[path], [n_again + n_read])

    @torch.no_grad()
    def read(self, rows: Sequence[Sequence[int]]) -> RowsRead:
        """Last hidden states, and a copy of all keys and values to go on from. Raises what `last_hidden` raises."""
        n_tokens = torch.tensor([len(row) for row in rows], device=self._hidden.device)
        n_columns = max(map(len, rows))
        hidden = self._hidden.new_empty(len(rows), self._hidden.shape[-1])
        layers = [
            tuple(pool.new_empty(len(rows), pool.shape[1], n_columns, pool.shape[2]) for pool in pools)
            for pools in self._pools
        ]
        for lot in self._lots(rows):
            paths, _ = self._read([rows[i] for i in lot])
            hidden[lot] = self._hidden[[path[-1] for path in paths]]
            slots = self._on_device([[ROOT] * (n_columns - len(path)) + path for path in paths])
            for pools, tensors in zip(self._pools, layers, strict=True):
                for pool, tensor in zip(pools, tensors, strict=True):
                    tensor[lot] = pool[slots].transpose(1, 2)
        is_token = torch.arange(n_columns, device=n_tokens.device) >= n_columns - n_tokens[:, None]
        return RowsRead(hidden, _cache_of(layers), is_token.long(), n_tokens)

    @torch.no_grad()
    def store(self, rows: Sequence[Sequence[int]], decoded: CachedRows, places: Sequence[int]) -> None:
        """Keep what decoding has read: `rows[i]` are the first tokens of the row at `places[i]` of `decoded`.

        A row of more than max_tokens is left out. No hidden states come with the tokens, so that the last one of a row
        is read again when it is asked for; nor is a row held, so that `forget` of a longer one frees it too.
        """
        stored = [(row, place) for row, place in zip(rows, places, strict=True) if 0 < len(row) <= self.max_tokens]
        layers = _layers_of(decoded.cache)
        for lot in self._lots([row for row, _ in stored]):
            new: list[tuple[int, int, int]] = []  # row of `decoded`, its column, slot
            with self._undone_if_it_fails() as paths:
                for row, place in (stored[i] for i in lot):
                    known = self._trie.find(row)
                    slots = self._trie.add(known, row[len(known) :])
                    paths.append(known + slots)
                    columns = decoded.is_token[place].nonzero().squeeze(-1)[len(known) : len(row)].tolist()
                    new += zip([place] * len(slots), columns, slots, strict=True)
                if new:
                    place, column, slot = self._on_device(new).unbind(-1)
                    for pools, (keys, values) in zip(self._pools, layers, strict=True):
                        pools[0][slot], pools[1][slot] = keys[place, :, column], values[place, :, column]
                    self._has_hidden[[slot for _, _, slot in new]] = False

    def forget(self, row: Sequence[int]) -> None:
        """Free the tokens of a row that was read, but for those that another such row begins with."""
        self._trie.forget(row)

    def clear(self) -> None:
        """Free all tokens."""
        self._trie = TokenTrie(self.max_tokens)

    def _lots(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Places of rows that fit into the cache together; what one lot uses may make room for the next."""
        self._require_room(rows)
        lot: list[int] = []
        n_tokens = 0
        for i in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):  # rows that begin alike become neighbours
            n_new = len(rows[i]) - (n_common(rows[lot[-1]], rows[i]) if lot else 0)
            if n_tokens + n_new > self.max_tokens:
                self._trie.begin()
                yield lot
                lot, n_tokens, n_new = [], 0, len(rows[i])
            lot.append(i)
            n_tokens += n_new
        if lot:
            self._trie.begin()
            yield lot

    def _require_room(self, rows: Sequence[Sequence[int]]) -> None:
        for i, row in enumerate(rows):
            if not row:
                raise ValueError(f"row {i} has no tokens: a hidden state is that of a row's last token")
            if len(row) > self.max_tokens:
                raise ValueError(
                    f"row {i} has {len(row)} tokens and the cache room for {self.max_tokens}: raise max_tokens"
                )

    def _read(self, rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
        """Slots of each row, with all keys and values and the last hidden state; and how many tokens each took."""
        chains: list[Chain] = []
        n_tokens_read: list[int] = []
        to_read: set[int] = set()
        with self._undone_if_it_fails() as paths:
            for row in rows:
                path = self._trie.find(row)
                n_known = len(path)
                path += self._trie.add(path, row[n_known:])
                self._has_hidden[path[n_known:]] = False
                paths.append(path)
                if n_known == len(row) and not self._has_hidden[path[-1]] and path[-1] not in to_read:
                    n_known -= 1
                n_tokens_read.append(len(row) - n_known)
                if n_known < len(row):
                    chains.append(Chain(path[:n_known], path[n_known:], list(row[n_known:])))
                    to_read.update(path[n_known:])
            self._run(chains)
        for path in paths:
            self._trie.hold(path[-1])
        return paths, n_tokens_read

    @contextmanager
    def _undone_if_it_fails(self) -> Iterator[list[list[int]]]:
        """Takes the paths that are filled meanwhile: a slot without keys and values must never be found."""
        paths: list[list[int]] = []
        try:
            yield paths
        except BaseException:
            for path in paths:
                self._trie.drop(path)
            raise

    def _run(self, chains: Sequence[Chain]) -> None:
        for groups in forward_passes(chains):
            self._run_together(groups)

    def _run_together(self, groups: Sequence[Group]) -> None:
        inputs = pass_inputs(groups)
        past, slots = self._on_device(inputs.past), self._on_device(inputs.slots)
        dtype = self.trunk.dtype
        mask = torch.zeros(inputs.is_visible.shape, dtype=dtype, device=past.device)
        mask.masked_fill_(~self._on_device(inputs.is_visible), torch.finfo(dtype).min)
        cache = _cache_of([tuple(pool[past].transpose(1, 2) for pool in pools) for pools in self._pools])
        hidden = self.trunk(
            input_ids=self._on_device(inputs.token_ids),
            attention_mask=mask[:, None],
            position_ids=self._on_device(inputs.position),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        is_new = slots != ROOT
        new = slots[is_new]
        for pools, tensors in zip(self._pools, _layers_of(cache), strict=True):
            for pool, tensor in zip(pools, tensors, strict=True):
                pool[new] = tensor[:, :, past.shape[1] :].transpose(1, 2)[is_new]
        self._hidden[new] = hidden[is_new]
        self._has_hidden[inputs.slots[inputs.slots != ROOT]] = True
        self.n_tokens_read += len(new)

    def _on_device(self, numbers: object) -> Tensor:
        return torch.as_tensor(numbers, device=self._hidden.device)


def _layers_of(cache: DynamicCache) -> Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache_of(layers: Layers) -> DynamicCache:
    """A cache that holds these keys and values [R, heads, L, d] without copying them."""
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _allocate(trunk: PreTrainedModel, n_slots: int) -> tuple[Layers, Tensor]:
    """Room for keys and values [slots, heads, d] of each layer and for hidden states [slots, D]; ROOT is zero.

    One token is read to see what it leaves behind.
    """
    with torch.inference_mode(False), torch.no_grad():
        cache = DynamicCache(config=trunk.config)
        token = torch.zeros(1, 1, dtype=torch.int64, device=trunk.device)
        hidden = trunk(
            input_ids=token, attention_mask=torch.ones_like(token), past_key_values=cache, use_cache=True
        ).last_hidden_state

        def room(one: Tensor) -> Tensor:
            # Written to once, so that the memory is really there; and 0 times what it happened to hold may be NaN.
            return one.new_empty(n_slots, *one.shape).zero_()

        pools = [(room(keys[0, :, 0]), room(values[0, :, 0])) for keys, values in _layers_of(cache)]
        return pools, room(hidden[0, 0])


def _require_plain_keys_and_values(trunk: PreTrainedModel) -> None:
    config = trunk.config.get_text_config()
    layers = {type(layer).__name__ for layer in DynamicCache(config=trunk.config).layers} - {DynamicLayer.__name__}
    rope = getattr(config, "rope_parameters", None) or {}
    drifting = _DRIFTING_ROTATIONS & {rope.get("rope_type")}
    fault = why_rows_would_mix(trunk)
    if fault is None and layers:
        fault = f"it caches {', '.join(sorted(layers))}, needed keys and values of every token alone"
    if fault is None and drifting:
        fault = f"its rope_type is {drifting.pop()}: keys of one length of row are not those of another"
    if fault is None and config._attn_implementation not in _TAKE_MASKS:
        fault = f"its attention is {config._attn_implementation}, needed one of {', '.join(_TAKE_MASKS)}"
    if fault is not None:
        raise ValueError(f"{type(trunk).__name__} cannot have a prefix cache: {fault}. Score by re-encoding instead")
