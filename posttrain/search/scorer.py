"""Scorers: what a search asks of a value model."""

from __future__ import annotations

from collections.abc import Sequence
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


class ReencodingScorer:
    """Reads every sequence from its first token at each call: plain, exact, and quadratic in the depth of a search."""

    def __init__(self, value_model: nn.Module, *, batch_size: int) -> None:
        self.value_model = value_model.eval()
        self.batch_size = batch_size
        self.n_tokens_read = 0

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        if any(len(sequence) == 0 for sequence in sequences):
            raise ValueError("cannot score an empty sequence: a value is read at the last token of a prefix")
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

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        """Nothing was kept."""
