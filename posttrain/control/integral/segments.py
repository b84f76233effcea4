"""Policy evaluation and policy iteration from data: segments of a plant's path, and the running cost along them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp

from posttrain.control.integral.quadrature import Array, Quadrature
from posttrain.control.integral.systems import ControlAffineSystem, form_of, quadratic_features
from posttrain.losses.integral import inflow, solve_linear_value

# The floor under every error measured from data. A method of order 8 reaches it in few steps; the paper's RK45 at 1e-8
# would be seen through the better rules.
STATE_TOLERANCE = 1e-12
COST_TOLERANCE = 1e-9  # of excess costs, which are small from the start: nothing cancels in them

DrawStates = Callable[[int], Array]  # number of the iteration -> [S, n] where its segments start


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Paths under one policy, sampled at common times; their costs are all that a rule of quadrature sees."""

    times: Array  # [K] increasing, the first 0 and the last the segment's length
    states: Array  # [S, K, n]
    cost: Array  # [S, K] running cost


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    form: Array  # [n, n] P of the value that the segments show
    condition: float  # of the least-squares problem


def record_segments(system: ControlAffineSystem, form: Array, starts: Array, times: Array) -> Segments:
    """Integrate the plant under the greedy policy of `form` from `starts` [S, n]; one run serves every rule."""
    states = integrate(lambda state: system.velocity(form, state), starts, times)
    return Segments(times, states, system.running_cost(form, states))


def times_of(rules: Sequence[Quadrature]) -> Array:
    """The nodes of all rules and both ends of the segment: the times to record so that each finds its own samples."""
    lengths = {rule.length for rule in rules}
    if len(lengths) != 1:
        raise ValueError(f"rules of lengths {sorted(lengths)}: segments that are shared have one length")
    return np.unique(np.concatenate([np.array([0.0, *lengths]), *(rule.nodes for rule in rules)]))


def evaluate_segments(segments: Segments, rule: Quadrature) -> Evaluation:
    """V with V(x_t) − V(x_{t+T}) = the integral by `rule`, by least squares over the segments.

    Raises ValueError when a node of the rule was not recorded, and when the states do not determine P.
    """
    columns = np.searchsorted(segments.times, rule.nodes)
    if not np.array_equal(segments.times[np.minimum(columns, len(segments.times) - 1)], rule.nodes):
        raise ValueError("a node of the rule is not among the recorded times: record at times_of([..., rule])")
    features = torch.from_numpy(quadratic_features(segments.states[:, [0, -1]]))
    cost, weight = torch.from_numpy(segments.cost[:, columns]), torch.from_numpy(rule.weights)
    value = solve_linear_value(features[:, 0], inflow(cost, weight), features[:, 1])
    return Evaluation(form_of(value.weight.numpy()), value.condition)


def iterate_policies(
    system: ControlAffineSystem, rule: Quadrature, draw_states: DrawStates, *, n_iterations: int
) -> list[Array]:
    """P of each iteration: record segments under the greedy policy of the last one, then evaluate it by `rule`."""
    forms = [system.start]
    for iteration in range(n_iterations):
        segments = record_segments(system, forms[-1], draw_states(iteration), times_of([rule]))
        forms.append(evaluate_segments(segments, rule).form)
    return forms[1:]


def random_states(n_segments: int, n_states: int, *, seed: int) -> DrawStates:
    """Standard normal states, drawn anew for every iteration and the same ones for every rule."""

    def draw(iteration: int) -> Array:
        return np.random.default_rng((seed, iteration)).standard_normal((n_segments, n_states))

    return draw


def carried_iterations(
    system: ControlAffineSystem, rule: Quadrature, start: Array, *, n_segments: int, n_iterations: int
) -> list[Array]:
    """Policy iteration as the paper's code has it: one path that is never reset, from `start` [n], cut in segments.

    The state decays, and with it what the data say: beside `iterate_policies` it shows what fresh states are worth.
    """
    forms, state = [system.start], start
    offsets = rule.length * np.arange(n_segments + 1)
    for _ in range(n_iterations):
        path = integrate(lambda state: system.velocity(forms[-1], state), state[None], offsets)[0]
        segments = record_segments(system, forms[-1], path[:-1], times_of([rule]))
        forms.append(evaluate_segments(segments, rule).form)
        state = path[-1]
    return forms[1:]


def excess_cost(system: ControlAffineSystem, form: Array, starts: Array, *, horizon: float) -> Array:
    """J(u) − V*(x_0) of the greedy policy of `form` from `starts` [S, n], up to `horizon`, [S].

    The excess (u − u*)'R(u − u*) is integrated along the path, so nothing cancels and no baseline is subtracted.
    """

    def velocity(extended: Array) -> Array:
        state = extended[..., :-1]
        rate = system.excess_rate(form, state)
        return np.concatenate((system.velocity(form, state), rate[..., None]), axis=-1)

    extended = np.concatenate((starts, np.zeros((len(starts), 1))), axis=-1)
    ends = integrate(velocity, extended, np.array([0.0, horizon]), tolerance=COST_TOLERANCE)
    return ends[:, -1, -1]


def integrate(
    velocity: Callable[[Array], Array], starts: Array, times: Array, *, tolerance: float = STATE_TOLERANCE
) -> Array:
    """[S, K, n] the paths of dx/dt = velocity(x) from `starts` [S, n] at `times` [K].

    Raises ArithmeticError when a path escapes.
    """
    shape = starts.shape
    solution = solve_ivp(
        lambda _, flat: velocity(flat.reshape(shape)).ravel(),
        (float(times[0]), float(times[-1])),
        starts.ravel(),
        method="DOP853",
        t_eval=times,
        rtol=tolerance,
        atol=1e-3 * tolerance * max(float(np.abs(starts).max()), sys.float_info.min),
    )
    if not solution.success:
        raise ArithmeticError(
            f"the path cannot be integrated: {solution.message} Does the policy stabilise the plant?"
        )
    return np.moveaxis(solution.y.reshape(*shape, -1), -1, 1)
