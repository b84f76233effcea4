"""Rules of quadrature on [0, length]: nodes and weights, ∫ f ≈ Σ_j c_j f(t_j).

A rule of even nodes has both ends among them and N − 1 intervals of h = length / (N − 1). `trapezoid_at` and
`cubic_spline_at` take the nodes as they are, and so does Bayesian quadrature (bayesian_quadrature.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Array = NDArray[np.floating[Any]]  # of float64, which linear algebra is not typed to keep


@dataclass(frozen=True, slots=True, eq=False)
class Quadrature:
    nodes: Array  # [N] increasing times in [0, length]
    weights: Array  # [N], in units of time
    length: float

    def __call__(self, samples: Array) -> Array:
        """The integrals of functions whose values at the nodes are the last axis of `samples`."""
        return samples @ self.weights


def even_nodes(n: int, length: float) -> Array:
    """n evenly spaced times from 0 to length, both included."""
    if n < 2:
        raise ValueError(f"{n} nodes cannot hold both ends of a segment: give 2 or more")
    if not length > 0:
        raise ValueError(f"a segment of length {length} has no integral: give a length above 0")
    return np.linspace(0.0, length, n)


def checked_nodes(nodes: Array, length: float) -> Array:
    """The nodes, when they increase within [0, length]; ValueError otherwise."""
    nodes = np.asarray(nodes, dtype=np.float64)
    if not (np.diff(nodes) > 0).all() or nodes[0] < 0 or nodes[-1] > length:
        raise ValueError(f"nodes {nodes.tolist()} must increase within [0, {length}]: sort them and drop repetitions")
    return nodes


def trapezoid(n: int, length: float) -> Quadrature:
    """Order 2: error ≈ h²/12 (f'(length) − f'(0))."""
    return trapezoid_at(even_nodes(n, length), length)


def trapezoid_at(nodes: Array, length: float) -> Quadrature:
    """The integral of the broken line through the values; a line is continued flat where an end is no node."""
    nodes = checked_nodes(nodes, length)
    border = np.concatenate(([0.0], (nodes[1:] + nodes[:-1]) / 2, [length]))
    return Quadrature(nodes, np.diff(border), length)


def simpson(n: int, length: float) -> Quadrature:
    """Order 4, exact on cubics: a parabola through each pair of intervals, so the number of nodes is odd."""
    if n % 2 == 0:
        raise ValueError(
            f"Simpson's rule pairs intervals, and {n} nodes have {n - 1} of them: take {n - 1} or {n + 1} nodes, or "
            "the cubic spline, which takes any number"
        )
    nodes = even_nodes(n, length)
    weights = np.full(n, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return Quadrature(nodes, weights * length / (3 * (n - 1)), length)


def cubic_spline(n: int, length: float) -> Quadrature:
    """The integral of the not-a-knot cubic spline: order 4 inside, and its error at the ends is of order 5."""
    return cubic_spline_at(even_nodes(n, length), length)


def cubic_spline_at(nodes: Array, length: float) -> Quadrature:
    """As `cubic_spline`, at any nodes; the spline is linear in the values, so its integral has fixed weights."""
    nodes = checked_nodes(nodes, length)
    spline = CubicSpline(nodes, np.eye(len(nodes)), bc_type="not-a-knot")
    return Quadrature(nodes, np.asarray(spline.integrate(0.0, length)), length)


def gauss_legendre(n: int, length: float) -> Quadrature:
    """Exact on polynomials of degree 2n − 1, at nodes that it chooses itself: the floor that others are held to."""
    if n < 1:
        raise ValueError(f"{n} nodes: Gauss-Legendre needs 1 or more")
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return Quadrature((nodes + 1) * length / 2, weights * length / 2, length)
