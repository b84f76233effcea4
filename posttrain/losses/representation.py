"""Penalties on the features of a critic: BEER (arXiv 2404.12754) and its peers DR3 and InFeR.

A critic with a linear last layer says  value = ⟨φ, w⟩ + b.  Consistency along a segment from a start to an end,

    ⟨φ, w⟩ + b = inflow + carry · (⟨φ', w⟩ + b),        r = inflow − (1 − carry) b,        D = φ − carry φ'

asks for ⟨D, w⟩ = r, and Cauchy-Schwarz gives |D| >= |r|/|w|: features that are too alike cannot be consistent.
Expanded, this is the paper's bound on their similarity (Theorem 1 and Remark 1: γ = carry, a critic without bias):

    cos(φ, φ') <= U = (|φ|² + carry² |φ'|² − r²/|w|²) / (2 carry |φ||φ'|)

BEER penalises relu(cos − U) (Eq. 12), which equals relu(r²/|w|² − |D|²) / (2 carry |φ||φ'|). The second form is
computed here: the first is the small difference of two numbers near 1. It is a certificate in one direction. Where the
penalty is positive the residual is at least |r| − |w||D| > 0; where the critic is consistent, or r = 0, it is 0 and
without gradient. A sampled φ' stands for its expectation: exact in deterministic environments, looser elsewhere.

A critic of actions has inflow = reward and carry = γ (1 − done). On a language model's value head a segment is a
token, inflow = r_t − β ρ_t and carry = 1 within the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain.losses.term import Term, Unit


@dataclass(frozen=True, slots=True)
class FeatureValues:
    """N segments as a critic with a linear last layer sees them."""

    phi: Tensor  # [N, D] features at the start, the input of the last layer
    next_phi: Tensor  # [N, D] features at the end, the ones that the target of the residual was computed from
    weight: Tensor  # [D] w of the last layer
    bias: Tensor  # [] b of the last layer
    inflow: Tensor  # [N] what is received between start and end, in the value's units
    carry: Tensor  # [N] what the end counts at the start, γ (1 − done); segments with 0 have no φ' and are left out

    def __post_init__(self) -> None:
        n_rows, width = self.phi.shape if self.phi.dim() == 2 else (-1, -1)
        needed = {"phi": (n_rows, width), "next_phi": (n_rows, width), "weight": (width,), "bias": ()}
        for name, shape in {**needed, "inflow": (n_rows,), "carry": (n_rows,)}.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} is {tuple(getattr(self, name).shape)}, phi is {tuple(self.phi.shape)}: needed phi "
                    "[N, D], next_phi [N, D], weight [D], bias [], inflow [N], carry [N]; [N, 1] would broadcast"
                )

    def effective_inflow(self) -> Tensor:
        """[N] r = inflow − (1 − carry) b: what is left for the features to explain once the bias has its share."""
        return self.inflow - (1 - self.carry) * self.bias


def beer_cosine(v: FeatureValues, *, coef: float, unit: Unit) -> tuple[Term, ...]:
    """The penalty with the paper's gradient, relu(cos(φ, SG φ') − SG U): only the angle of φ is pushed (Eq. 12).

    The gradient shrinks as 1/|φ|. Count `unit` as the number of segments with carry > 0.
    """
    bound = _bound(v)
    value = torch.where(bound.excess > 0, bound.excess.detach() + bound.cosine - bound.cosine.detach(), 0.0)
    return (Term("beer", value, unit, coef), *_bound_metrics(bound, unit))


def beer_hinge(v: FeatureValues, *, coef: float, unit: Unit) -> tuple[Term, ...]:
    """The same value with the gradient of relu(r²/|w|² − |φ − carry SG φ'|²), the scale 2 carry |φ||φ'| held fixed.

    It pushes φ away from carry φ' itself, along the difference that the bound is about; length may change as well.
    Count `unit` as the number of segments with carry > 0.
    """
    bound = _bound(v)
    return (Term("beer", bound.excess, unit, coef), *_bound_metrics(bound, unit))


def beer_released(
    v: FeatureValues, *, online_next_phi: Tensor, discount: float, coef: float, unit: Unit
) -> tuple[Term, ...]:
    """The penalty of the authors' code, which is not the bound of the theorem for any vector; for comparison only.

    It measures the cosine to φ' of the target networks (v.next_phi) against a bound whose numerator holds φ' of the
    online networks (`online_next_phi` [N, D]), the raw reward in place of r, and terminal rows like the others.
    Differs from that code: `discount` is not fixed at 0.99, and rows without features, where it divides by 0, are out.
    """
    phi, next_phi = v.phi.detach(), v.next_phi.detach()
    norms, has_features = _norms(phi, next_phi)
    gap = phi.square().sum(-1) + discount**2 * online_next_phi.detach().square().sum(-1)
    gap = gap - v.inflow.detach().square() / v.weight.detach().square().sum()
    cosine = torch.where(has_features, F.cosine_similarity(v.phi, next_phi, dim=-1, eps=1e-6), 0.0)
    upper = torch.where(has_features, gap / (2 * discount * norms), 0.0)
    mixed = _Bound(cosine, upper, torch.where(has_features, (cosine - upper).relu(), 0.0))
    return (Term("beer", mixed.excess, unit, coef), *_bound_metrics(mixed, unit))


def dr3(v: FeatureValues, *, coef: float, unit: Unit) -> tuple[Term, ...]:
    """⟨φ, φ'⟩, which keeps features of consecutive states apart whether or not consistency asks for it.

    (Kumar et al. 2021, arXiv 2112.04716.) Nothing is detached here: φ' of target networks carries no gradient anyway.
    """
    product = (v.phi * v.next_phi).sum(-1)
    return (Term("dr3", torch.where(v.carry > 0, product, 0.0), unit, coef),)


def infer(heads: Tensor, initial_heads: Tensor, *, scale: float, coef: float, unit: Unit) -> tuple[Term, ...]:
    """Mean over K of (g_k(s, a) − scale · g_k⁰(s, a))²: random linear heads stay what they were at initialisation.

    (InFeR, Lyle et al. 2022, arXiv 2204.09560.) heads [N, K] of the network now, initial_heads [N, K] of its frozen
    first copy, both unscaled.
    """
    if heads.dim() != 2 or heads.shape != initial_heads.shape:
        raise ValueError(f"heads are {tuple(heads.shape)}, at the start {tuple(initial_heads.shape)}: needed [N, K]")
    return (Term("infer", (heads - scale * initial_heads.detach()).square().mean(-1), unit, coef),)


@dataclass(frozen=True, slots=True)
class _Bound:
    """By segment, 0 where a segment has no bound: no φ', or φ, φ' or w is 0 and the cosine is undefined."""

    cosine: Tensor  # [N] cos(φ, φ'), with gradient to φ
    upper: Tensor  # [N] U, no gradient
    excess: Tensor  # [N] relu(cos − U), with the gradient of the hinge to φ


def _bound(v: FeatureValues) -> _Bound:
    inflow, carry = v.effective_inflow().detach(), v.carry
    next_phi = torch.where(carry.unsqueeze(-1) > 0, v.next_phi.detach(), 0.0)
    norms, has_features = _norms(v.phi, next_phi)
    squared_weight = v.weight.detach().square().sum()
    is_bounded = has_features & (carry > 0) & (squared_weight > 0)
    needed = inflow.square() / torch.where(squared_weight > 0, squared_weight, 1.0)
    gap = (v.phi - carry.unsqueeze(-1) * next_phi).square().sum(-1) - needed
    scale = torch.where(is_bounded, 2 * carry * norms, 1.0).detach()
    cosine = (v.phi * next_phi).sum(-1) / norms
    return _Bound(
        torch.where(is_bounded, cosine, 0.0),
        torch.where(is_bounded, cosine + gap / scale, 0.0).detach(),
        torch.where(is_bounded, (-gap).relu() / scale, 0.0),
    )


def _norms(phi: Tensor, next_phi: Tensor) -> tuple[Tensor, Tensor]:
    """[N] |φ||φ'|, and whether it is positive; 1 where it is not, since the root has no derivative at 0."""
    squares = (phi.square().sum(-1), next_phi.square().sum(-1))
    has_features = (squares[0] > 0) & (squares[1] > 0)
    roots = [torch.where(has_features, square, 1.0).sqrt() for square in squares]
    return roots[0] * roots[1], has_features


def _bound_metrics(bound: _Bound, unit: Unit) -> tuple[Term, ...]:
    fires = (bound.excess > 0).to(bound.excess.dtype)
    return (
        Term("beer/firing_rate", fires, unit, coef=0.0),
        Term("beer/bound", bound.upper, unit, coef=0.0),
        Term("beer/cosine", bound.cosine.detach(), unit, coef=0.0),
    )
