"""Penalties on a critic's features by name, as functions of what a critic step sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial

from torch import Tensor

from posttrain.losses.representation import FeatureValues, beer_cosine, beer_hinge, beer_released, dr3
from posttrain.losses.term import Counts, Term

SEGMENT = "segment"  # transitions that something follows; terminal ones have no next features
OnlineNextFeatures = Callable[[], Tensor]  # [N, D] φ(s', π(s')) of the networks that are trained; a pass of its own
Penalty = Callable[[FeatureValues, OnlineNextFeatures], tuple[Term, ...]]


class PenaltyName(StrEnum):
    NONE = "none"
    BEER = "beer"  # the paper's gradient, through the cosine
    HINGE = "hinge"  # the same penalty with the gradient of the squared distance
    RELEASED = "released"  # the authors' code, whose bound is not the theorem's
    DR3 = "dr3"


def make_penalty(name: PenaltyName, *, coef: float, discount: float) -> Penalty:
    """The penalty with its coefficient, as a function of what a critic step sees."""
    released = partial(beer_released, discount=discount, coef=coef, unit=SEGMENT)
    penalties: Mapping[PenaltyName, Penalty] = {
        PenaltyName.NONE: lambda values, _: (),
        PenaltyName.BEER: lambda values, _: beer_cosine(values, coef=coef, unit=SEGMENT),
        PenaltyName.HINGE: lambda values, _: beer_hinge(values, coef=coef, unit=SEGMENT),
        PenaltyName.RELEASED: lambda values, online: released(values, online_next_phi=online()),
        PenaltyName.DR3: lambda values, _: dr3(values, coef=coef, unit=SEGMENT),
    }
    return penalties[name]


def means(terms: tuple[Term, ...], counts: Counts) -> dict[str, Tensor]:
    """Every term averaged over its unit, without its coefficient, for the log."""
    return {term.name: term.value.detach().sum() / counts[term.unit] for term in terms}
