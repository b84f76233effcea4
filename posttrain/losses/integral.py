"""Policy evaluation of integral reinforcement learning, as a potential on the path residual (arXiv 2402.17375).

Along a segment of a plant's path under a fixed policy, the cost-to-go V satisfies

    V(x(t)) = ∫_t^{t+T} l(x(s), u(x(s))) ds + V(x(t+T)),

and a quadrature rule stands for the integral, Σ_j c_j l(t_j). The learner needs no model of the drift: it sees states
and running costs. l is a cost and V a cost-to-go, both minimised; with rewards −l and values −V the residual changes
its sign alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from posttrain.losses.paths import path_residual
from posttrain.losses.term import Term

_svd = cast(Callable[..., tuple[Tensor, Tensor, Tensor]], torch.linalg.svd)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True)
class SegmentValues:
    """What a value function and a rule of quadrature say about S segments with N nodes each."""

    value: Tensor  # [S] V(x(t)), cost units, with gradient
    end_value: Tensor  # [S] V(x(t+T)), with gradient unless the caller detached it: a semi-gradient is its choice
    cost: Tensor  # [S, N] running cost at the nodes, cost units per second, no gradient
    weight: Tensor  # [N] or [S, N] weights c_j of the rule, seconds


@dataclass(frozen=True, slots=True)
class LinearValue:
    """Weights of a value function that is linear in features, and how well the data determine them."""

    weight: Tensor  # [F]
    condition: float  # of the matrix of feature differences; relative errors of the integrals may grow by it


def policy_evaluation(v: SegmentValues) -> tuple[Term, ...]:
    """(V(x(t)) − (Σ_j c_j l_j + V(x(t+T))))², one item a segment."""
    residual = path_residual(v.value, inflow(v.cost, v.weight), v.end_value)
    return (
        Term("value", residual.square(), "segment"),
        Term("value/residual", residual.detach().abs(), "segment", coef=0.0),
    )


def inflow(cost: Tensor, weight: Tensor) -> Tensor:
    """[S] the integral of the running cost along each segment, by the rule's weights."""
    if weight.shape[-1] != cost.shape[-1]:
        raise ValueError(
            f"cost is {tuple(cost.shape)}, weight is {tuple(weight.shape)}: was the cost read at the rule's own nodes?"
        )
    return (weight * cost.detach()).sum(-1)


def solve_linear_value(features: Tensor, gain: Tensor, end_features: Tensor) -> LinearValue:
    """The weights w of V = w·φ at which `policy_evaluation` is least: min_w Σ (φ_t·w − (gain + φ_{t+T}·w))².

    features, end_features: [S, F] at both ends of each segment; gain: [S] its integral. This is least-squares
    temporal difference learning without discount; the gradient of `policy_evaluation` leads to the same w.

    Raises ValueError where the segments leave some direction of w open.
    """
    difference = path_residual(features, torch.zeros_like(features), end_features)
    left, scale, right = _svd(difference, full_matrices=False)
    n_features = difference.shape[-1]
    rank = int((scale > scale.max() * max(difference.shape) * torch.finfo(scale.dtype).eps).sum())
    if rank < n_features:
        raise ValueError(
            f"{len(difference)} segments determine {rank} of {n_features} weights: draw more segments from other "
            "states, or drop features that repeat one another (x_i x_j and x_j x_i)"
        )
    return LinearValue(right.T @ ((left.T @ gain) / scale), float(scale[0] / scale[-1]))
