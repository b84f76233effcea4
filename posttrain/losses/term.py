"""The one loss interface: an objective maps values to summed terms; the step divides by global counts once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Unit = Literal["token", "sequence", "pair", "transition", "segment", "trajectory", "state"]


@dataclass(frozen=True, slots=True)
class Term:
    """One additive part of a loss, summed over its items and not yet averaged.

    The step minimises  Σ_k coef_k · sum(value_k) / counts[unit_k].  A term with coef 0 is a metric: logged only.
    """

    name: str
    value: Tensor  # any shape, float32 or float64, already 0 where masked
    unit: Unit  # what `value` is averaged over
    coef: float = 1.0


Objective = Callable[..., tuple[Term, ...]]  # pure: one *Values dataclass in, Terms out
Counts = Mapping[str, float]  # items of each unit over all micro-batches and ranks of one optimiser step


def total(terms: Sequence[Term], counts: Counts) -> Tensor:
    """Σ_k coef_k · sum(value_k) / counts[unit_k], the scalar to call backward on.

    Raises KeyError when a unit was not counted and ValueError when its count is not positive.
    """
    weighted = [term.coef * term.value.sum() / _count(term, counts) for term in terms if term.coef != 0.0]
    if not weighted:
        names = ", ".join(term.name for term in terms) or "none"
        raise ValueError(
            f"no term carries a gradient (terms: {names}; all have coef 0): is the objective a set of metrics?"
        )
    return torch.stack(weighted).sum()


def _count(term: Term, counts: Counts) -> float:
    if term.unit not in counts:
        raise KeyError(f"term '{term.name}' is averaged over '{term.unit}', but only {sorted(counts)} were counted")
    if not counts[term.unit] > 0:
        raise ValueError(f"term '{term.name}' has {counts[term.unit]} items of '{term.unit}': is every row masked?")
    return counts[term.unit]
