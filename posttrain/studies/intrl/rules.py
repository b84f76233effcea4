"""The rules of quadrature that the study compares, each under a name that its results carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.control.integral.bayesian_quadrature import PriorMean, bayesian_quadrature, bayesian_quadrature_at
from posttrain.control.integral.kernels import Matern
from posttrain.control.integral.quadrature import (
    Array,
    Quadrature,
    cubic_spline,
    cubic_spline_at,
    gauss_legendre,
    simpson,
    trapezoid,
    trapezoid_at,
)

EVEN = {"trapezoid": trapezoid, "simpson": simpson, "cubic_spline": cubic_spline, "gauss_legendre": gauss_legendre}
AT_ANY_NODES = {"trapezoid": trapezoid_at, "cubic_spline": cubic_spline_at}
RULES = (*EVEN, "matern")


@dataclass(frozen=True, slots=True)
class ClassicRule:
    """A rule without parameters."""

    name: str  # a key of EVEN

    @property
    def method(self) -> str:
        return self.name

    def build(self, n: int, length: float) -> Quadrature:
        return EVEN[self.name](n, length)

    def build_at(self, nodes: Array, length: float) -> Quadrature:
        return AT_ANY_NODES[self.name](nodes, length)

    def entries(self) -> dict[str, Any]:
        """What a row says of the rule."""
        return {"rule": self.name}


@dataclass(frozen=True, slots=True)
class MaternRule:
    """Bayesian quadrature with a Matérn kernel of Sobolev order b (ν = b − ½)."""

    b: int
    lengthscale: float  # seconds
    mean: PriorMean
    jitter: float

    @property
    def name(self) -> str:
        return "matern"

    @property
    def method(self) -> str:
        return f"{self.name}_{self.b} ell={self.lengthscale:g} mean={self.mean.value} jitter={self.jitter:g}"

    def build(self, n: int, length: float) -> Quadrature:
        return bayesian_quadrature(n, length, kernel=self._kernel(), mean=self.mean, jitter=self.jitter)

    def build_at(self, nodes: Array, length: float) -> Quadrature:
        return bayesian_quadrature_at(nodes, length, kernel=self._kernel(), mean=self.mean, jitter=self.jitter)

    def entries(self) -> dict[str, Any]:
        return {
            "rule": self.name,
            "b": self.b,
            "lengthscale": self.lengthscale,
            "mean": self.mean.value,
            "jitter": self.jitter,
        }

    def _kernel(self) -> Matern:
        return Matern(self.b - 1, self.lengthscale)


Rule = ClassicRule | MaternRule

PAPERS_MATERN = MaternRule(4, 0.3, PriorMean.ZERO, 1e-8)  # of the paper's code, with the jitter of its library
EXACT_MATERN = MaternRule(4, 0.3, PriorMean.ZERO, 0.0)
LONG_MATERN = MaternRule(4, 3.0, PriorMean.CONSTANT, 0.0)


def matern_grid(
    smoothness: Sequence[int], lengthscales: Sequence[float], means: Sequence[PriorMean], jitters: Sequence[float]
) -> list[MaternRule]:
    """Every combination."""
    return [
        MaternRule(b, lengthscale, mean, jitter)
        for b in smoothness
        for lengthscale in lengthscales
        for mean in means
        for jitter in jitters
    ]
