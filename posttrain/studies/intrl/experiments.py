"""The experiments of the study: each takes what it varies, and gives rows of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from posttrain.control.integral.bayesian_quadrature import BayesianQuadrature
from posttrain.control.integral.linear import (
    euler_gain,
    iterate_by_quadrature,
    kleinman_step,
    newton_step,
    optimal_form,
    true_gap,
)
from posttrain.control.integral.quadrature import Array, gauss_legendre
from posttrain.control.integral.segments import (
    carried_iterations,
    evaluate_segments,
    excess_cost,
    iterate_policies,
    random_states,
    record_segments,
    times_of,
)
from posttrain.control.integral.systems import cart_pole, example_one
from posttrain.studies.intrl.config import IntrlConfig
from posttrain.studies.intrl.plants import CARRIED_START, FIRST_FIGURE_START, HORIZON_S, Plant, plants
from posttrain.studies.intrl.rules import (
    MaternRule,
    Rule,
)

Row = dict[str, Any]
N_FIGURE_NODES = (2, 3, 4)  # of the paper's Fig. 1
N_FIGURE_ITERATIONS = 4
EULER_STEPS_S = (0.04, 0.02, 0.01, 0.005, 0.0025)
N_NEWTON_STEPS = 9
NORMAL_95 = 1.959964


def data_free(config: IntrlConfig, rule: Rule) -> Iterator[Row]:
    """Where policy iteration on Example 1 ends with this rule, by the Stein equation: nothing but the rule errs."""
    plant = plants()["example_one"]
    for n in config.n_nodes:
        built = rule.build(n, config.segment_s)
        form = iterate_by_quadrature(example_one(), np.zeros((1, 3)), built, n_iterations=config.n_iterations)
        yield {"system": "example_one", "n_nodes": n, **plant.measure(form)}


def from_data(config: IntrlConfig, rule: Rule, seed: int) -> Iterator[Row]:
    """Policy iteration from segments of fresh random states, the same states for every rule."""
    for name, plant in plants().items():
        n_states = len(plant.system.start)
        draw = random_states(config.n_segments, n_states, seed=seed)
        for n in config.n_nodes:
            built = rule.build(n, config.segment_s)
            forms = iterate_policies(plant.system, built, draw, n_iterations=config.n_iterations)
            yield {"system": name, "n_nodes": n, **plant.measure(forms[-1])}


def carried(config: IntrlConfig, rule: Rule) -> Iterator[Row]:
    """Example 2 as the paper's code runs it: one path, never reset."""
    plant = plants()["example_two"]
    for n in config.n_nodes:
        forms = _carried_forms(config, plant, rule, n, config.n_iterations)
        yield {"system": "example_two", "n_nodes": n, **plant.measure(forms[-1])}


def first_figure(config: IntrlConfig, rule: Rule) -> Iterator[Row]:
    """The paper's Fig. 1 on Example 2: what each iteration's policy costs above J* = 15000, with 2 to 4 samples."""
    system = plants()["example_two"].system
    for n in N_FIGURE_NODES:
        forms = _carried_forms(config, plants()["example_two"], rule, n, N_FIGURE_ITERATIONS)
        for iteration, form in enumerate(forms, start=1):
            gap = excess_cost(system, form, FIRST_FIGURE_START, horizon=HORIZON_S)
            yield {"system": "example_two", "n_nodes": n, "iteration": iteration, "true_gap": float(gap[0])}


def irregular(config: IntrlConfig, rule: Rule, seed: int) -> Iterator[Row]:
    """As `data_free`, but samples come at random times, both ends among them."""
    plant = plants()["example_one"]
    for n in config.n_nodes:
        nodes = irregular_nodes(n, config.segment_s, seed)
        form = iterate_by_quadrature(
            example_one(),
            np.zeros((1, 3)),
            rule.build_at(nodes, config.segment_s),
            n_iterations=config.n_iterations,
        )
        yield {"system": "example_one", "n_nodes": n, **plant.measure(form)}


def calibration(config: IntrlConfig, rule: MaternRule, seed: int) -> Iterator[Row]:
    """How often the 95 % interval of Bayesian quadrature holds the integral of a segment's cost."""
    for name, plant in plants().items():
        starts = random_states(config.n_calibration_segments, len(plant.system.start), seed=seed)(0)
        exact = gauss_legendre(8, config.segment_s)
        for n in config.n_nodes:
            built = rule.build(n, config.segment_s)
            assert isinstance(built, BayesianQuadrature)
            segments = record_segments(plant.system, plant.system.optimum, starts, times_of([exact, built]))
            cost, truth = (segments.cost[:, np.isin(segments.times, by.nodes)] for by in (built, exact))
            score = (built(cost) - exact(truth)) / built.standard_deviation(cost)
            yield {
                "system": name,
                "n_nodes": n,
                "coverage": float((np.abs(score) < NORMAL_95).mean()),
                "score_rms": float(np.sqrt(np.square(score).mean())),
            }


def paired(config: IntrlConfig, rule: Rule, seed: int) -> Iterator[Row]:
    """One evaluation of the optimal policy: every rule reads the same recorded segments."""
    for name, plant in plants().items():
        built = [rule.build(n, config.segment_s) for n in config.n_nodes]
        starts = random_states(config.n_segments, len(plant.system.start), seed=seed)(0)
        segments = record_segments(plant.system, plant.system.optimum, starts, times_of(built))
        for n, by in zip(config.n_nodes, built, strict=True):
            evaluation = evaluate_segments(segments, by)
            error = plant.system.value_error(evaluation.form)
            yield {"system": name, "n_nodes": n, "omega_error": error, "condition": evaluation.condition}


def newton() -> Iterator[Row]:
    """Policy iteration on Example 1 beside Newton's method on the Riccati map, without any quadrature."""
    system = example_one()
    optimum, form = optimal_form(system), np.zeros((3, 3))
    for iteration in range(1, N_NEWTON_STEPS + 1):
        by_newton, form = newton_step(system, form), kleinman_step(system, form)
        yield {
            "system": "example_one",
            "iteration": iteration,
            "omega_error": float(np.linalg.norm(form - optimum)),
            "newton_difference": float(np.abs(form - by_newton).max()),
        }


def euler() -> Iterator[Row]:
    """The motivation on the cart-pole: what policies that are optimal for Euler's steps cost on the plant."""
    system = cart_pole()
    for step in EULER_STEPS_S:
        yield {"system": "cart_pole", "step_s": step, "true_gap": true_gap(system, euler_gain(system, step))}


def irregular_nodes(n: int, length: float, seed: int) -> Array:
    """Both ends and n − 2 uniform times between them, none closer to another than a hundredth of even spacing."""
    generator = np.random.default_rng((seed, n))
    while True:
        nodes = np.sort(np.concatenate(([0.0, length], generator.uniform(0.0, length, n - 2))))
        if np.diff(nodes).min() > length / (100 * (n - 1)):
            return nodes


def _carried_forms(config: IntrlConfig, plant: Plant, rule: Rule, n: int, n_iterations: int) -> list[Array]:
    built = rule.build(n, config.segment_s)
    return carried_iterations(
        plant.system, built, CARRIED_START, n_segments=config.n_segments, n_iterations=n_iterations
    )
