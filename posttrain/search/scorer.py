"""Scorers: what a search asks of a value model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ValueScorer(Protocol):
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """V of each whole sequence, read at its last token, in reward units."""
        ...
