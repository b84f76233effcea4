"""Scorers that read every token of a search once: a candidate costs its own step, whatever stands before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from posttrain.models.prefix_cache import PrefixCache
from posttrain.models.roles import first_difference
from posttrain.search.scorer import require_tokens


class _PrefixScorer:
    """A value head on what a prefix cache reads, `batch_size` sequences at a time."""

    def __init__(self, head: nn.Module, prefix_cache: PrefixCache, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, needs at least 1")
        self.prefix_cache = prefix_cache
        self.batch_size = batch_size
        self.n_tokens_read = 0
        self.n_tokens_cached = 0  # tokens of scored sequences that did not have to be read for them
        self._head = head

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """V of each whole sequence, read at its last token, in reward units."""
        require_tokens(sequences)
        alike = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))  # what begins alike is read together
        values = [0.0] * len(sequences)
        n_before = self.prefix_cache.n_tokens_read
        for start in range(0, len(alike), self.batch_size):
            chunk = alike[start : start + self.batch_size]
            hidden = self.prefix_cache.last_hidden([sequences[i] for i in chunk])
            for i, value in zip(chunk, self._head(hidden).squeeze(-1).tolist(), strict=True):
                values[i] = value
        self._count(sequences, n_before)
        return values

    @torch.no_grad()
    def score_all(self, sequence: Sequence[int]) -> list[float]:
        """V at every token of one sequence, in reward units; nothing is read that was scored before."""
        require_tokens([sequence])
        n_before = self.prefix_cache.n_tokens_read
        values = self._head(self.prefix_cache.every_hidden(sequence)).squeeze(-1).tolist()
        self._count([sequence], n_before)
        return values

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        """Nothing will go on from these: free what they do not share with other scored sequences."""
        for sequence in sequences:
            self.prefix_cache.forget(sequence)

    def _count(self, sequences: Sequence[Sequence[int]], n_before: int) -> None:
        n_read = self.prefix_cache.n_tokens_read - n_before
        self.n_tokens_read += n_read
        self.n_tokens_cached += sum(map(len, sequences)) - n_read


class CachedScorer(_PrefixScorer):
    """The values of ReencodingScorer, up to rounding, from a value model that remembers what it has read.

    It remembers at most `max_tokens` tokens, so that this is also the length of the longest sequence it can score; it
    and `batch_size` change speed and memory only. Raises ValueError for an architecture that PrefixCache refuses.
    """

    def __init__(self, value_model: PreTrainedModel, *, max_tokens: int, batch_size: int) -> None:
        value_model.eval()
        super().__init__(value_model.score, PrefixCache(value_model.base_model, max_tokens=max_tokens), batch_size)


class SharedTrunkScorer(_PrefixScorer):
    """V from the policy's own trunk, for a value model that is one head on it (`roles: shared_trunk`).

    `prefix_cache` is the one that the policy's engine samples with: what was sampled is read, and a candidate costs
    its last token, or nothing when the policy has gone on from it. Of `value_model` only the head is used.
    Raises ValueError when its trunk is not that of the policy.
    """

    def __init__(self, value_model: PreTrainedModel, *, prefix_cache: PrefixCache, batch_size: int) -> None:
        difference = first_difference(value_model.base_model, prefix_cache.trunk)
        if difference is not None:
            raise ValueError(
                f"the value model does not stand on the policy's trunk: {difference} differs. Needed a value model "
                "trained with roles shared_trunk and the policy saved beside it, loaded in one dtype; otherwise take "
                "CachedScorer"
            )
        prefix_cache.trunk.eval()
        super().__init__(value_model.score, prefix_cache, batch_size)
