"""By what a search ranks its branches: values along the path, log-probabilities, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from posttrain.search.asks import Asking, read_values
from posttrain.search.tree import Node, SearchTree


class Aggregate(StrEnum):
    """Which number the values of a path's steps make."""

    LAST = "last"  # OREO's: V is already the value of the whole prefix
    MIN = "min"
    PROD = "prod"  # for values that are probabilities
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Ranking:
    """score = w · aggregate(V along the path) + (1 − w) · Σ log π / n_tokens^length_penalty."""

    value_weight: float = 1.0  # w; 0 asks no value model
    length_penalty: float = 0.0  # 0: the plain sum of log-probabilities, 1: their mean per token
    aggregate: Aggregate = Aggregate.LAST

    def __post_init__(self) -> None:
        if not 0 <= self.value_weight <= 1:
            raise ValueError(f"value_weight is {self.value_weight}, needs a number from 0 (log π) to 1 (V)")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty is {self.length_penalty}, needs a finite number")

    def rank(self, tree: SearchTree, nodes: Sequence[Node]) -> Asking:
        """The nodes with their scores set, best first; of equal ones the earlier first."""
        if self.value_weight > 0 and nodes:
            yield from read_values(tree, nodes)
        for node in nodes:
            node.score = self._score(tree.path(node))
        return sorted(nodes, key=lambda node: -node.score)

    def _score(self, path: Sequence[Node]) -> float:
        score = 0.0
        if self.value_weight > 0:
            values = [step.value for step in path if step.value is not None]
            score += self.value_weight * _aggregated(values, self.aggregate)
        if self.value_weight < 1:
            n_tokens = sum(len(step.token_ids) for step in path)
            logp = sum(step.logp for step in path if step.logp is not None)
            score += (1 - self.value_weight) * logp / n_tokens**self.length_penalty
        return score


def _aggregated(values: Sequence[float], how: Aggregate) -> float:
    match how:
        case Aggregate.LAST:
            return values[-1]
        case Aggregate.MIN:
            return min(values)
        case Aggregate.PROD:
            return math.prod(values)
        case Aggregate.MEAN:
            return sum(values) / len(values)
