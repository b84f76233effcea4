"""Bayesian quadrature: the integral of a Gaussian process that passes through the samples, and how sure it is.

With Gram matrix K and z_j = ∫ k(t_j, ·) the weights are K⁻¹z and the posterior variance is ∫∫k − z'K⁻¹z, the squared
worst-case error in the kernel's space. Both depend on nodes and kernel alone, so a rule is built once, in 60 digits,
and applied to every segment. Symbols: c = weights, λ = multiplier.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import mpmath
import numpy as np

from posttrain.control.integral.kernels import Kernel, Number, Wiener
from posttrain.control.integral.quadrature import Array, Quadrature, checked_nodes, even_nodes

DIGITS = 60  # the Gram matrix of 15 nodes with a lengthscale of 300 segments still keeps 20 of them


class PriorMean(StrEnum):
    ZERO = "zero"  # not exact on constants, which few nodes show
    CONSTANT = "constant"  # an unknown constant with a flat prior: exact on constants


@dataclass(frozen=True, slots=True, eq=False)
class BayesianQuadrature(Quadrature):
    variance: float  # of the integral, time², for a kernel of unit amplitude
    whitening: Array  # [M, N] W with W K W' = 1 and, where the mean is unknown, W 1 = 0

    def amplitude(self, samples: Array) -> Array:
        """σ² of the kernel σ²k that explains each function best, [...] for samples [..., N]: maximum likelihood."""
        return np.square(samples @ self.whitening.T).mean(-1)

    def standard_deviation(self, samples: Array) -> Array:
        """Of the integral of each function, in the function's own units, [...]."""
        return np.sqrt(self.variance * self.amplitude(samples))


def bayesian_quadrature(
    n: int, length: float, *, kernel: Kernel, mean: PriorMean, jitter: float = 0.0
) -> BayesianQuadrature:
    """The rule at even nodes; see `bayesian_quadrature_at`."""
    return bayesian_quadrature_at(even_nodes(n, length), length, kernel=kernel, mean=mean, jitter=jitter)


def bayesian_quadrature_at(
    nodes: Array, length: float, *, kernel: Kernel, mean: PriorMean, jitter: float = 0.0
) -> BayesianQuadrature:
    """The rule at any nodes in [0, length]. `jitter` is added to the diagonal of K, as if samples had that variance.

    Raises ValueError when nodes repeat or leave the interval, and when the prior says that a sample is 0.
    """
    nodes = checked_nodes(nodes, length)
    if not jitter >= 0:
        raise ValueError(f"jitter is {jitter}: a variance, so 0 (no jitter) or more")
    if isinstance(kernel, Wiener) and (mean is PriorMean.ZERO or nodes[0] > 0):
        raise ValueError(
            f"a Wiener process starts from a known value: make 0 a node (the first is {nodes[0]}) "
            "and the mean constant"
        )
    return _solve(tuple(nodes.tolist()), length, kernel, mean, jitter)


@lru_cache(maxsize=4096)
def _solve(
    nodes: tuple[float, ...], length: float, kernel: Kernel, mean: PriorMean, jitter: float
) -> BayesianQuadrature:
    with mpmath.workdps(DIGITS):
        times, end = [mpmath.mpf(t) for t in nodes], mpmath.mpf(length)
        gram = mpmath.matrix([[kernel.covariance(s, t) for t in times] for s in times])
        gram += mpmath.mpf(jitter) * mpmath.eye(len(times))
        embedding = mpmath.matrix([kernel.embedding(t, end) for t in times])
        weights, multiplier = _weights(gram, embedding, end, mean)
        # ∫∫k − 2c'z + c'Kc with Kc = z − λ1 and 1'c = length (λ = 0 for a zero mean)
        variance = kernel.total(end) - mpmath.fdot(weights, embedding) - multiplier * end
        return BayesianQuadrature(
            np.array(nodes),
            np.array([float(c) for c in weights]),
            length,
            float(variance),
            _whitening(gram, mean),
        )


def _weights(gram: Number, embedding: Number, length: Number, mean: PriorMean) -> tuple[Number, Number]:
    """c and λ of  Kc + λ1 = z, 1'c = length  for a constant mean; of Kc = z, λ = 0 for a zero one."""
    n = len(embedding)
    if mean is PriorMean.ZERO:
        return mpmath.lu_solve(gram, embedding), mpmath.mpf(0)
    bordered = mpmath.ones(n + 1)
    bordered[:n, :n] = gram
    bordered[n, n] = 0
    solution = mpmath.lu_solve(bordered, mpmath.matrix([*embedding, length]))
    return solution[:n], solution[n]


def _whitening(gram: Number, mean: PriorMean) -> Array:
    """chol(D K D')⁻¹ D, where the rows of D are what the prior mean leaves free: samples, or their differences."""
    n = gram.rows
    free = mpmath.eye(n)
    if mean is PriorMean.CONSTANT:
        free = mpmath.matrix([[(j == i + 1) - (j == i) for j in range(n)] for i in range(n - 1)])
    factor = mpmath.cholesky(free * gram * free.T)
    rows: list[list[Number]] = []
    for i, row in enumerate(free.tolist()):  # forward substitution
        for j, done in enumerate(rows):
            row = [entry - factor[i, j] * other for entry, other in zip(row, done, strict=True)]
        rows.append([entry / factor[i, i] for entry in row])
    return np.array(rows, dtype=np.float64)
