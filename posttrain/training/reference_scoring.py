"""Fill a reference cache: each process scores its share of the shards, and what is there and whole is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from posttrain.data.collate import StateLevel, collate
from posttrain.data.tokenizer_card import tokenizer_card
from posttrain.models.actor_critic import action_states
from posttrain.models.logprobs import score_chosen
from posttrain.models.policy import load_policy
from posttrain.models.reference import ReferenceFrom, frozen_head
from posttrain.schema import EncodedTrajectory, TokenBatch
from posttrain.training.oreo_config import OreoConfig
from posttrain.training.reference_cache import (
    HEAD,
    CacheKey,
    DamagedCacheError,
    ReferenceCache,
    hash_model,
    hash_rows,
    n_actions,
    shard_name,
)

DEFAULT_FOLDER = "reference_cache"  # under the run folder
ROWS_PER_SHARD = 256  # what a killed computation loses at most, in each process

logger = logging.getLogger(__name__)


def prepare_reference_cache(
    config: OreoConfig,
    rows: Sequence[EncodedTrajectory],
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> ReferenceCache:
    """A whole cache for these rows; all processes must call it, and must see the same folder.

    Every part is read and checked against its record. What is absent or damaged is computed; only then is the
    reference loaded, and it is gone again on return. Raises CacheMismatchError for the cache of another run.
    """
    folder = (
        Path(config.output_dir) / DEFAULT_FOLDER if config.reference_cache is None else Path(config.reference_cache)
    )
    key = cache_key(config, rows, tokenizer, rows_per_shard=rows_per_shard)
    with config.main_process_first(local=False):  # the first one writes the manifest
        cache = ReferenceCache(folder, key, rows)
    parts = [shard_name(shard) for shard in range(len(cache.rows_by_shard))]
    if config.reference_from is ReferenceFrom.CACHED_HIDDEN:
        parts.insert(0, HEAD)
    own = parts[config.process_index :: config.world_size]
    missing = {part for part in own if not _is_whole(cache, part)}
    if missing:
        logger.warning("Computing %d of %d parts of %s", len(missing), len(own), folder)
        _fill(cache, missing, config)
    PartialState().wait_for_everyone()
    return cache


def cache_key(
    config: OreoConfig,
    rows: Sequence[EncodedTrajectory],
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows_per_shard: int,
) -> CacheKey:
    """What the numbers of a run's reference depend on."""
    card = tokenizer_card(tokenizer)
    return CacheKey(
        holds=config.reference_from.value,
        model_sha256=hash_model(config.reference or config.model),
        data_sha256=hash_rows(rows),
        vocabulary_sha256=str(card["vocabulary_sha256"]),
        chat_template_sha256=card["chat_template_sha256"],
        max_length=config.max_length,
        precision=f"{config.dtype} under bfloat16 autocast" if config.bf16 else config.dtype,
        rows_per_shard=rows_per_shard,
    )


def collate_with_cache(
    encoded: Sequence[EncodedTrajectory],
    *,
    collate_rows: Callable[[Sequence[EncodedTrajectory]], dict[str, Tensor]],
    cache: ReferenceCache,
    column: str,
) -> dict[str, Tensor]:
    """A batch as `collate_rows` makes it, with the cached numbers of its rows as `column`."""
    return {**collate_rows(encoded), column: cache.read(row.row_id for row in encoded)}


def _is_whole(cache: ReferenceCache, part: str) -> bool:
    if not cache.was_finished(part):
        return False
    try:
        cache.require_whole(part)
    except DamagedCacheError as damage:
        logger.warning("%s; it is computed anew", damage)
        return False
    return True


def _fill(cache: ReferenceCache, missing: set[str], config: OreoConfig) -> None:
    with _whole_weights(config):
        reference = load_policy(config.reference or config.model, dtype=getattr(torch, config.dtype))
    reference.requires_grad_(False).eval().to(config.device)
    if HEAD in missing:
        cache.write_head(frozen_head(reference.get_output_embeddings()))
    for shard, rows in enumerate(cache.rows_by_shard):
        if shard_name(shard) in missing:
            cache.write_shard(shard, _score_rows(reference, rows, config))


@torch.no_grad()
def _score_rows(reference: PreTrainedModel, rows: Sequence[EncodedTrajectory], config: OreoConfig) -> Tensor:
    """The numbers of all actions of `rows`, in their order; batches are formed from rows of similar length."""
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    size = config.per_device_train_batch_size
    numbers: dict[int, Tensor] = {}
    for start in range(0, len(rows), size):
        chosen = by_length[start : start + size]
        scored = _score_batch(reference, [rows[index] for index in chosen], config).cpu()
        numbers.update(zip(chosen, scored.split([n_actions(rows[index]) for index in chosen]), strict=True))
    return torch.cat([numbers[index] for index in range(len(rows))])


def _score_batch(reference: PreTrainedModel, rows: Sequence[EncodedTrajectory], config: OreoConfig) -> Tensor:
    """[N] log-probs in float32, or [N, D] hidden states in the dtype that the head multiplies them in."""
    columns = collate(rows, pad_id=0, states=StateLevel.TOKEN)
    batch = TokenBatch(**{name: column.to(config.device) for name, column in columns.items()})
    with torch.autocast(config.device.type, torch.bfloat16, enabled=config.bf16):
        hidden, head = action_states(reference, batch), reference.get_output_embeddings()
        if config.reference_from is ReferenceFrom.CACHED_HIDDEN:
            return hidden.to(torch.bfloat16 if config.bf16 else getattr(torch, config.dtype))
        chosen = batch.input_ids[:, 1:][batch.is_action]
        return score_chosen(hidden, head, chosen, chunk_size=config.log_prob_chunk_size).logp


@contextmanager
def _whole_weights(config: OreoConfig) -> Iterator[None]:
    """Load a network whole: under ZeRO-3 each process would get a share, which only the engine can gather."""
    plugin = config.deepspeed_plugin
    if plugin is None or not is_deepspeed_zero3_enabled():
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        plugin.set_deepspeed_weakref()  # what transformers asks is back as accelerate had set it
