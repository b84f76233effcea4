"""Scorers that read every token of a search once: a candidate costs its own step, whatever stands before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from posttrain.models.prefix_cache import PrefixCache
from posttrain.models.roles import first_difference
from posttrain.search.scorer import Scored, by_group, require_tokens


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

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """V of each whole sequence, read at its last token, in reward units."""
        (scored,) = self.score_groups([sequences])
        return scored.values

    @torch.no_grad()
    def score_groups(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[Scored]:
        """`score` of all groups' sequences together, each group with its share of the tokens read.

        A token that several of them begin with is read once, and counts for one of them.
        """
        sequences = [sequence for group in groups for sequence in group]
        require_tokens(sequences)
        alike = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))  # what begins alike is read together
        values, n_tokens_read = [0.0] * len(sequences), [0] * len(sequences)
        for start in range(0, len(alike), self.batch_size):
            chunk = alike[start : start + self.batch_size]
            read = self.prefix_cache.last_hidden([sequences[i] for i in chunk])
            of_chunk = self._head(read.hidden).squeeze(-1).tolist()
            for i, value, n_read in zip(chunk, of_chunk, read.n_tokens_read, strict=True):
                values[i], n_tokens_read[i] = value, n_read
        self._count(sequences, sum(n_tokens_read))
        return by_group(groups, values, n_tokens_read)

    @torch.no_grad()
    def score_all(self, sequence: Sequence[int]) -> Scored:
        """V at every token of one sequence; nothing is read that was scored before."""
        require_tokens([sequence])
        read = self.prefix_cache.every_hidden(sequence)
        (n_read,) = read.n_tokens_read
        self._count([sequence], n_read)
        return Scored(self._head(read.hidden).squeeze(-1).tolist(), n_read)

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        """Nothing will go on from these: free what they do not share with other scored sequences."""
        for sequence in sequences:
            self.prefix_cache.forget(sequence)

    def _count(self, sequences: Sequence[Sequence[int]], n_read: int) -> None:
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
