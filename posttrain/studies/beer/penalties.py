"""Penalties on a critic's features by name, as functions of what a critic step sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol

import torch
from torch import Generator, Tensor

from posttrain.losses.representation import FeatureValues, beer_cosine, beer_hinge, beer_released, dr3, infer
from posttrain.losses.term import Counts, Term

SEGMENT = "segment"  # transitions that something follows; terminal ones have no next features
TRANSITION = "transition"  # all of them


@dataclass(frozen=True, slots=True)
class Passes:
    """Further passes over a batch, each made only by the penalty that calls it."""

    online_next_phi: Callable[[], Tensor]  # [N, D] φ(s', π(s')) of the networks that are trained, no gradient
    first_phi: Callable[[], Tensor]  # [N, D] φ(s, a) of the critic's first weights, no gradient


Penalty = Callable[[FeatureValues, Passes], tuple[Term, ...]]


class PenaltyName(StrEnum):
    NONE = "none"
    BEER = "beer"  # the paper's gradient, through the cosine
    HINGE = "hinge"  # the same penalty with the gradient of the squared distance
    RELEASED = "released"  # the authors' code, whose bound is not the theorem's
    DR3 = "dr3"
    INFER = "infer"  # some directions of the features stay what they were in the beginning


class PenaltyOptions(Protocol):
    """What the studies' options say about penalties."""

    @property
    def penalty_coef(self) -> float: ...

    @property
    def dr3_coef(self) -> float: ...

    @property
    def infer_coef(self) -> float: ...

    @property
    def infer_heads(self) -> int: ...

    @property
    def infer_scale(self) -> float: ...

    @property
    def discount(self) -> float: ...

    @property
    def hidden_sizes(self) -> Sequence[int]: ...


def penalty_of(name: PenaltyName, options: PenaltyOptions, *, seed: int) -> Penalty:
    """The penalty as the options have it; the heads of InFeR are drawn from the seed."""
    coefs = {PenaltyName.DR3: options.dr3_coef, PenaltyName.INFER: options.infer_coef}
    heads = random_heads(options.infer_heads, options.hidden_sizes[-1], seed=seed)
    coef = coefs.get(name, options.penalty_coef)
    return make_penalty(name, coef=coef, discount=options.discount, heads=heads, scale=options.infer_scale)


def make_penalty(name: PenaltyName, *, coef: float, discount: float, heads: Tensor, scale: float) -> Penalty:
    """The penalty with its coefficient, as a function of what a critic step sees.

    `heads` [D, K] are InFeR's, which hold ⟨φ, head⟩ at `scale` times its first value.
    """
    released = partial(beer_released, discount=discount, coef=coef, unit=SEGMENT)
    held = partial(infer, scale=scale, coef=coef, unit=TRANSITION)
    penalties: Mapping[PenaltyName, Penalty] = {
        PenaltyName.NONE: lambda values, _: (),
        PenaltyName.BEER: lambda values, _: beer_cosine(values, coef=coef, unit=SEGMENT),
        PenaltyName.HINGE: lambda values, _: beer_hinge(values, coef=coef, unit=SEGMENT),
        PenaltyName.RELEASED: lambda values, passes: released(values, online_next_phi=passes.online_next_phi()),
        PenaltyName.DR3: lambda values, _: dr3(values, coef=coef, unit=SEGMENT),
        PenaltyName.INFER: lambda values, passes: held(values.phi @ heads, passes.first_phi() @ heads),
    }
    return penalties[name]


def random_heads(n: int, width: int, *, seed: int) -> Tensor:
    """[width, n] normal with deviation 1/√width: a head's value has the size of a feature's root mean square."""
    return torch.randn(width, n, generator=Generator().manual_seed(seed)) / width**0.5


def means(terms: tuple[Term, ...], counts: Counts) -> dict[str, Tensor]:
    """Every term averaged over its unit, without its coefficient, for the log."""
    return {term.name: term.value.detach().sum() / counts[term.unit] for term in terms}
