"""Scorers: what a search asks of a value model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import nn

from posttrain.models.value import values_at_every_position


class ValueScorer(Protocol):
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """V of each whole sequence, read at its last token, in reward units."""
        ...

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        """A hint that nothing will go on from these: what is kept for them alone may be freed."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """Values, and what it took to know them."""

    values: list[float]  # V of each of some sequences, or at every token of one; reward units
    n_tokens_read: int  # of the sequences' tokens; the others did not have to be read


class ReencodingScorer:
    """Reads every sequence from its first token at each call: plain, exact, and quadratic in the depth of a search."""

    def __init__(self, value_model: nn.Module, *, batch_size: int) -> None:
        self.value_model = value_model.eval()
        self.batch_size = batch_size
        self.n_tokens_read = 0
        self.n_tokens_cached = 0  # and stays so

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        require_tokens(sequences)
        device = self.value_model.score.weight.device
        by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))  # little padding within a batch
        values = [0.0] * len(sequences)
        for start in range(0, len(by_length), self.batch_size):
            chunk = by_length[start : start + self.batch_size]
            length = torch.tensor([len(sequences[i]) for i in chunk], device=device)
            input_ids = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(sequences[i], device=device) for i in chunk], batch_first=True
            )
            is_token = torch.arange(input_ids.shape[1], device=device) < length[:, None]
            value = values_at_every_position(self.value_model, input_ids, is_token)
            last = value.gather(1, length[:, None] - 1).squeeze(1)
            self.n_tokens_read += int(length.sum())
            for i, v in zip(chunk, last.tolist(), strict=True):
                values[i] = v
        return values

    def score_groups(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[Scored]:
        """`score` of all groups' sequences together, each group with its share of the tokens read."""
        sequences = [sequence for group in groups for sequence in group]
        return by_group(groups, self.score(sequences), [len(sequence) for sequence in sequences])

    @torch.no_grad()
    def score_all(self, sequence: Sequence[int]) -> Scored:
        """V at every token of one sequence."""
        require_tokens([sequence])
        input_ids = torch.tensor([list(sequence)], device=self.value_model.score.weight.device)
        self.n_tokens_read += len(sequence)
        values = values_at_every_position(self.value_model, input_ids, torch.ones_like(input_ids).bool())
        return Scored(values[0].tolist(), len(sequence))

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        """Nothing was kept."""


def by_group(
    groups: Sequence[Sequence[Sequence[int]]], values: Sequence[float], n_tokens_read: Sequence[int]
) -> list[Scored]:
    """Values and counts of the sequences of all groups, one after another, as what each group gets."""
    value, n_read = iter(values), iter(n_tokens_read)
    return [Scored(list(islice(value, len(group))), sum(islice(n_read, len(group)))) for group in groups]


def require_tokens(sequences: Sequence[Sequence[int]]) -> None:
    """Raises ValueError when one of the sequences is empty."""
    if any(len(sequence) == 0 for sequence in sequences):
        raise ValueError("cannot score an empty sequence: a value is read at the last token of a prefix")
