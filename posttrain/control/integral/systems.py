"""Plants dx/dt = f(x) + g(x) u with cost ∫ x'Qx + u'Ru dt whose optimal value is known: V*(x) = x'P*x.

A value function is a symmetric matrix P here, V(x) = x'Px, learned through its coefficients in the monomials x_i x_j
with i <= j (`quadratic_features`). Its greedy policy is u = −½ R⁻¹ g' V_x = −R⁻¹ g(x)' P x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from posttrain.control.integral.linear import Array, LinearSystem, optimal_form


@dataclass(frozen=True, slots=True)
class ControlAffineSystem:
    """A plant that is affine in its input, with an optimal value that is a quadratic form."""

    name: str
    drift: Callable[[Array], Array]  # f: [..., n] -> [..., n]; the learner never calls it
    input_matrix: Callable[[Array], Array]  # g: [..., n] -> [..., n, m]; the learner knows it
    state_cost: Array  # [n, n] Q
    control_cost: Array  # [m, m] R
    optimum: Array  # [n, n] P*
    start: Array  # [n, n] P_0: its greedy policy is the first one
    paper_coordinates: Callable[[Array], Array]  # P -> ω in the paper's basis, in which it measures |ω − ω*|

    def policy(self, form: Array, state: Array) -> Array:
        """u = −R⁻¹ g(x)' P x, [..., m]."""
        pull = np.einsum("...nm,...n->...m", self.input_matrix(state), state @ form)
        return -np.linalg.solve(self.control_cost, pull[..., None])[..., 0]

    def velocity(self, form: Array, state: Array) -> Array:
        """dx/dt under the greedy policy of `form`, [..., n]."""
        control = self.policy(form, state)
        return self.drift(state) + np.einsum("...nm,...m->...n", self.input_matrix(state), control)

    def running_cost(self, form: Array, state: Array) -> Array:
        """l = x'Qx + u'Ru under the greedy policy of `form`, [...]."""
        control = self.policy(form, state)
        return _quadratic(self.state_cost, state) + _quadratic(self.control_cost, control)

    def excess_rate(self, form: Array, state: Array) -> Array:
        """(u − u*)'R(u − u*), [...]: along the path of u its integral is J(u) − V*(x_0), by completing the square."""
        return _quadratic(self.control_cost, self.policy(form, state) - self.policy(self.optimum, state))

    def hjb_residual(self, form: Array, state: Array) -> Array:
        """V_x'f + x'Qx − ¼ V_x' g R⁻¹ g' V_x of V = x'Px, [...]; 0 everywhere at P*."""
        control = self.policy(form, state)
        flow = 2.0 * np.einsum("...n,...n->...", state @ form, self.drift(state))
        return flow + _quadratic(self.state_cost, state) - _quadratic(self.control_cost, control)

    def value_error(self, form: Array) -> float:
        """|ω − ω*|, Euclidean, in the paper's basis."""
        return float(np.linalg.norm(self.paper_coordinates(form) - self.paper_coordinates(self.optimum)))


def linear_quadratic(name: str, system: LinearSystem, start: Array) -> ControlAffineSystem:
    """The same plant as a `ControlAffineSystem`; the paper's basis is kron(x, x), so |ω| = |P| (Frobenius)."""
    return ControlAffineSystem(
        name=name,
        drift=lambda state: state @ system.a.T,
        input_matrix=lambda state: np.broadcast_to(system.b, (*state.shape[:-1], *system.b.shape)),
        state_cost=system.q,
        control_cost=system.r,
        optimum=optimal_form(system),
        start=start,
        paper_coordinates=np.ravel,
    )


def example_one() -> LinearSystem:
    """Three states in a row, the first driven by the second; stable without control (the paper's Example 1)."""
    a = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-0.1, -0.5, -0.7]])
    return LinearSystem(a, np.array([[0.0], [0.0], [1.0]]), np.eye(3), np.eye(1))


def example_two() -> ControlAffineSystem:
    """Two states, input through sin(x_1), V* = x_1²/2 + x_2² (the paper's Example 2)."""

    def drift(state: Array) -> Array:
        first, second = state[..., 0], state[..., 1]
        return np.stack(
            (second - first, -(first + second) / 2 + second * np.sin(first) ** 2 / 2),
            axis=-1,
        )

    def input_matrix(state: Array) -> Array:
        sine = np.sin(state[..., 0])
        return np.stack((np.zeros_like(sine), sine), axis=-1)[..., None]

    return ControlAffineSystem(
        name="example_two",
        drift=drift,
        input_matrix=input_matrix,
        state_cost=np.eye(2),
        control_cost=np.eye(1),
        optimum=np.diag([0.5, 1.0]),
        start=form_of(np.array([-1.0, 3.0, 1.5])),
        paper_coordinates=coefficients_of,
    )


def cart_pole() -> LinearSystem:
    """The cart-pole about its upright rest: mass 1 kg with a pole of 0.1 kg and half length 0.5 m, g = 9.8 m/s².

    States: position, velocity, angle, angular velocity. The paper trains a network on the small-angle plant over two
    seconds; this is the linear plant without horizon, with the paper's cost, so that everything about it is exact.
    """
    mass_cart, mass_pole, half_length, gravity = 1.0, 0.1, 0.5, 9.8
    total = mass_cart + mass_pole
    inertia = half_length * (4.0 / 3.0 - mass_pole / total)
    lever = mass_pole * half_length / total
    a = np.zeros((4, 4))
    a[0, 1] = a[2, 3] = 1.0
    a[3, 2] = gravity / inertia
    a[1, 2] = -lever * a[3, 2]
    b = np.array([[0.0], [1.0 / total + lever / (inertia * total)], [0.0], [-1.0 / (inertia * total)]])
    return LinearSystem(a, b, np.diag([0.1, 1.0, 100.0, 5.0]), np.array([[0.1]]))


def quadratic_features(state: Array) -> Array:
    """[..., n(n+1)/2] the monomials x_i x_j with i <= j: each product once, so that weights are determined."""
    rows, columns = np.triu_indices(state.shape[-1])
    return state[..., rows] * state[..., columns]


def form_of(coefficients: Array) -> Array:
    """[n, n] the symmetric P with x'Px = Σ coefficients · quadratic_features(x)."""
    n_states = round((np.sqrt(8 * len(coefficients) + 1) - 1) / 2)
    form = np.zeros((n_states, n_states))
    form[np.triu_indices(n_states)] = coefficients
    return (form + form.T) / 2


def coefficients_of(form: Array) -> Array:
    """[n(n+1)/2] the weights of `quadratic_features` that give x'Px; the inverse of `form_of`."""
    n_states = len(form)
    return ((2.0 - np.eye(n_states)) * form)[np.triu_indices(n_states)]


def _quadratic(form: Array, vector: Array) -> Array:
    return np.einsum("...i,ij,...j->...", vector, form, vector)
