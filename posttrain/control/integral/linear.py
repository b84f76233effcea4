"""Linear plants with quadratic costs, where every quantity of integral reinforcement learning has an exact answer.

dx/dt = Ax + Bu, J = ∫ x'Qx + u'Ru dt, no discount. A gain K stands for the policy u = −Kx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import (
    expm,
    solve_continuous_are,
    solve_continuous_lyapunov,
    solve_discrete_are,
    solve_discrete_lyapunov,
)

from posttrain.control.integral.quadrature import Array, Quadrature


@dataclass(frozen=True, slots=True)
class LinearSystem:
    a: Array  # [n, n]
    b: Array  # [n, m]
    q: Array  # [n, n] cost of states, positive semidefinite
    r: Array  # [m, m] cost of inputs, positive definite

    def closed_loop(self, gain: Array) -> Array:
        """A − BK. Raises ValueError when it is not stable: the cost of this gain is infinite."""
        matrix = self.a - self.b @ gain
        growth = float(np.linalg.eigvals(matrix).real.max())
        if growth >= 0:
            raise ValueError(f"A - BK grows at the rate {growth:.3g}: start from a gain that stabilises the plant")
        return matrix

    def running_cost(self, gain: Array) -> Array:
        """M = Q + K'RK: the cost per second in state x is x'Mx."""
        return self.q + gain.T @ self.r @ gain


def optimal_form(system: LinearSystem) -> Array:
    """P* of the algebraic Riccati equation, V* = x'P*x."""
    return _symmetric(solve_continuous_are(system.a, system.b, system.q, system.r))


def gain_of(system: LinearSystem, form: Array) -> Array:
    """K = R⁻¹B'P, the greedy gain of V = x'Px."""
    return np.linalg.solve(system.r, system.b.T @ form)


def form_of_gain(system: LinearSystem, gain: Array) -> Array:
    """P_K with J_K(x) = x'P_K x: A_c'P + P A_c + M = 0."""
    matrix = system.closed_loop(gain)
    return _symmetric(solve_continuous_lyapunov(matrix.T, -system.running_cost(gain)))


def kleinman_step(system: LinearSystem, form: Array) -> Array:
    """Greedy gain, then its exact value: one round of policy iteration."""
    return form_of_gain(system, gain_of(system, form))


def riccati_residual(system: LinearSystem, form: Array) -> Array:
    """G(P) = A'P + PA + Q − P B R⁻¹ B' P, the left side of the HJB equation on quadratic forms."""
    return system.a.T @ form + form @ system.a + system.q - form @ system.b @ gain_of(system, form)


def newton_step(system: LinearSystem, form: Array) -> Array:
    """P − G'(P)⁻¹ G(P), with the derivative G'(P)W = A_c'W + W A_c written out as a matrix and inverted."""
    matrix = system.a - system.b @ gain_of(system, form)
    eye = np.eye(len(matrix))
    derivative = np.kron(matrix.T, eye) + np.kron(eye, matrix.T)
    step = np.linalg.solve(derivative, riccati_residual(system, form).ravel())
    return form - step.reshape(form.shape)


def evaluate_by_quadrature(system: LinearSystem, gain: Array, rule: Quadrature) -> Array:
    """The P that policy evaluation finds from exact paths whose cost is integrated by `rule`, without any data.

    P − E_T'P E_T = Σ_j c_j E_j'M E_j with E_j = exp(A_c t_j): the consistency of every segment at once, a Stein
    equation. Segments of data that span the quadratic forms give the same P.
    """
    matrix, cost = system.closed_loop(gain), system.running_cost(gain)
    flow = expm(matrix * rule.nodes[:, None, None])  # [N, n, n]
    inflow = np.einsum("j,jki,kl,jlm->im", rule.weights, flow, cost, flow)
    return _symmetric(solve_discrete_lyapunov(expm(matrix * rule.length).T, inflow))


def iterate_by_quadrature(system: LinearSystem, gain: Array, rule: Quadrature, *, n_iterations: int) -> Array:
    """The P that policy iteration ends at when every integral is taken by `rule`."""
    form = evaluate_by_quadrature(system, gain, rule)
    for _ in range(n_iterations - 1):
        form = evaluate_by_quadrature(system, gain_of(system, form), rule)
    return form


def trapezoid_bias(system: LinearSystem, gain: Array, spacing: float) -> Array:
    """P̂ − P_K of the trapezoid rule to leading order: −(h²/12)(A_c'M + M A_c), whatever the segment's length."""
    matrix, cost = system.closed_loop(gain), system.running_cost(gain)
    return -(spacing**2) / 12 * (matrix.T @ cost + cost @ matrix)


def true_gap(system: LinearSystem, gain: Array) -> float:
    """tr(P_K − P*): what the gain costs above the optimum from a state with unit covariance, free of cancellation.

    By completing the square it is tr(ΔK'R ΔK X) with ΔK = K − K* and A_c X + X A_c' + I = 0, so it is of second order
    in the error of the gain.
    """
    difference = gain - gain_of(system, optimal_form(system))
    matrix = system.closed_loop(gain)
    visits = solve_continuous_lyapunov(matrix, -np.eye(len(matrix)))
    return float(np.trace(difference.T @ system.r @ difference @ visits))


def euler_gain(system: LinearSystem, spacing: float) -> Array:
    """The gain that is optimal for Euler's steps x + τ(Ax + Bu) with the cost summed as τ(x'Qx + u'Ru).

    It solves the discretised problem exactly, so what it costs on the plant is the price of the discretisation alone.
    """
    a = np.eye(len(system.a)) + spacing * system.a
    b = spacing * system.b
    form = solve_discrete_are(a, b, spacing * system.q, spacing * system.r)
    return np.linalg.solve(spacing * system.r + b.T @ form @ b, b.T @ form @ a)


def loglog_slope(n_nodes: Sequence[int], errors: Sequence[float]) -> float:
    """Least-squares slope of log error against log(N − 1): rules on even nodes converge in the number of intervals."""
    n_intervals = np.asarray(n_nodes, dtype=np.float64) - 1
    return float(np.polyfit(np.log(n_intervals), np.log(errors), 1)[0])


def _symmetric(form: Array) -> Array:
    return (form + form.T) / 2
