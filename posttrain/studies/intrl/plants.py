"""The paper's two plants, with how far a learned value and its policy are from the optimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from posttrain.control.integral.linear import gain_of, optimal_form, true_gap
from posttrain.control.integral.quadrature import Array
from posttrain.control.integral.segments import excess_cost
from posttrain.control.integral.systems import ControlAffineSystem, example_one, example_two, linear_quadratic

FIRST_FIGURE_START = np.array([[-100.0, 100.0]])  # of the paper's Fig. 1, on Example 2; J* = 15000 there
CARRIED_START = np.array([1.0, 1.0])  # where the paper's data of Example 2 begin
HORIZON_S = 30.0  # of paths whose cost is summed: Example 2 near rest decays as e^(−0.75 t)
N_POLICY_SAMPLES = 10_000  # of the paper's E|u − u*|, x ~ N(0, 10⁴ I)


@dataclass(frozen=True, slots=True)
class Plant:
    system: ControlAffineSystem
    policy_error: Callable[[Array], float]  # the paper's: |K − K*| of Example 1, E|u − u*| of Example 2
    true_gap: Callable[[Array], float]  # what the greedy policy of P costs above V*, from states of unit covariance

    def measure(self, form: Array) -> dict[str, float]:
        """Errors of V = x'Px and of its greedy policy.

        estimated_gap is tr(P − P*), the learner's own opinion of its cost; times 10⁴ the paper's J − J*.
        """
        return {
            "omega_error": self.system.value_error(form),
            "gain_error": self.policy_error(form),
            "estimated_gap": float(np.trace(form - self.system.optimum)),
            "true_gap": self.true_gap(form),
        }


def linear_plant() -> Plant:
    """Example 1, which starts without control."""
    linear = example_one()
    optimal_gain = gain_of(linear, optimal_form(linear))
    return Plant(
        linear_quadratic("example_one", linear, np.zeros((3, 3))),
        policy_error=lambda form: float(np.linalg.norm(gain_of(linear, form) - optimal_gain)),
        true_gap=lambda form: true_gap(linear, gain_of(linear, form)),
    )


def sine_plant() -> Plant:
    """Example 2, with the input through sin(x_1)."""
    system = example_two()
    states = 100.0 * np.random.default_rng(0).standard_normal((N_POLICY_SAMPLES, 2))
    # Exact to the fifth degree for N(0, 1) in the plane: six points on the circle of radius 2, weight 1/12 each, and
    # the origin, which costs nothing.
    angles = 2 * np.pi * np.arange(6) / 6
    circle = 2.0 * np.stack((np.cos(angles), np.sin(angles)), axis=-1)

    def policy_error(form: Array) -> float:
        return float(np.abs(system.policy(form, states) - system.policy(system.optimum, states)).mean())

    def gap(form: Array) -> float:
        return float(excess_cost(system, form, circle, horizon=HORIZON_S).sum() / 12)

    return Plant(system, policy_error, gap)


def plants() -> dict[str, Plant]:
    return {plant.system.name: plant for plant in (linear_plant(), sine_plant())}
