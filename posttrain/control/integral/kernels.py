"""Covariances of Gaussian processes on [0, length] with their integrals in closed form, in mpmath's numbers.

Gram matrices of smooth kernels are near singular (10¹² at 15 nodes), and the integrals cancel; in float64 that asks
for jitter, which then sets the error of the rule. Here the working precision is the caller's (`mpmath.workdps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial
from typing import Any, Protocol

from mpmath import exp, mpf, sqrt

Number = Any  # mpmath.mpf, which has no type of its own


class Kernel(Protocol):
    def covariance(self, s: Number, t: Number) -> Number:
        """k(s, t)."""
        ...

    def embedding(self, t: Number, length: Number) -> Number:
        """∫_0^length k(s, t) ds."""
        ...

    def total(self, length: Number) -> Number:
        """∫∫_[0, length]² k(s, t) ds dt."""
        ...


@dataclass(frozen=True, slots=True)
class Matern:
    """Matérn kernel of half-integer smoothness ν = p + 1/2 and unit variance.

    k(r) = e^{−s} Σ_m a_m s^m with s = r √(2p+1) / lengthscale and a_m = p!/(2p)! · (2p−m)! / (m! (p−m)!) · 2^m. In one
    dimension its space is the Sobolev space of order b = p + 1.
    """

    p: int  # 0 (exponential) to 3
    lengthscale: float  # in units of time

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 3:
            raise ValueError(f"p is {self.p}: Matérn kernels of smoothness p + 1/2 are here for p = 0, 1, 2, 3")
        if not self.lengthscale > 0:
            raise ValueError(f"lengthscale is {self.lengthscale}: give a time above 0")

    def covariance(self, s: Number, t: Number) -> Number:
        scaled = self._rate() * abs(s - t)
        return exp(-scaled) * sum(a * scaled**m for m, a in enumerate(self._coefficients()))

    def embedding(self, t: Number, length: Number) -> Number:
        return self._primitive(t) + self._primitive(length - t)

    def total(self, length: Number) -> Number:
        # ∫∫ k = 2 ∫_0^L (L − r) k(r) dr
        rate = self._rate()
        moment = sum(a * _incomplete_gamma(m + 1, rate * length) for m, a in enumerate(self._coefficients()))
        return 2 * (length * self._primitive(length) - moment / rate**2)

    def _primitive(self, r: Number) -> Number:
        """∫_0^r k."""
        rate = self._rate()
        return sum(a * _incomplete_gamma(m, rate * r) for m, a in enumerate(self._coefficients())) / rate

    def _rate(self) -> Number:
        return sqrt(2 * self.p + 1) / mpf(self.lengthscale)

    def _coefficients(self) -> list[Number]:
        p = self.p
        return [
            mpf(factorial(p) * factorial(2 * p - m) * 2**m) / (factorial(2 * p) * factorial(m) * factorial(p - m))
            for m in range(p + 1)
        ]


@dataclass(frozen=True, slots=True)
class Wiener:
    """Brownian motion from a known start: k(s, t) = min(s, t). Its rule at nodes with both ends is the trapezoid."""

    def covariance(self, s: Number, t: Number) -> Number:
        return min(s, t)

    def embedding(self, t: Number, length: Number) -> Number:
        return t * length - t**2 / 2

    def total(self, length: Number) -> Number:
        return length**3 / 3


def _incomplete_gamma(m: int, s: Number) -> Number:
    """∫_0^s u^m e^{−u} du = m! (1 − e^{−s} Σ_{j<=m} s^j/j!)."""
    return factorial(m) * (1 - exp(-s) * sum(s**j / factorial(j) for j in range(m + 1)))
