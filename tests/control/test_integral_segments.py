"""Policy iteration from data against the data-free oracle, and Example 2 against its known optimum. In float64."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from posttrain.control.integral.bayesian_quadrature import PriorMean, bayesian_quadrature
from posttrain.control.integral.kernels import Matern
from posttrain.control.integral.linear import form_of_gain, gain_of, iterate_by_quadrature, true_gap
from posttrain.control.integral.quadrature import gauss_legendre, trapezoid
from posttrain.control.integral.segments import (
    carried_iterations,
    evaluate_segments,
    excess_cost,
    iterate_policies,
    random_states,
    record_segments,
    times_of,
)
from posttrain.control.integral.systems import (
    coefficients_of,
    example_one,
    example_two,
    form_of,
    linear_quadratic,
    quadratic_features,
)

LENGTH = 0.1


def linear():
    return linear_quadratic("example_one", example_one(), np.zeros((3, 3)))


def papers_rule(n: int):
    return bayesian_quadrature(n, LENGTH, kernel=Matern(3, 0.3), mean=PriorMean.ZERO, jitter=1e-8)


def test_forms_and_coefficients_are_inverse_and_agree_with_the_features():
    # x'Px with P = [[1, 2], [2, 5]] is x_1² + 4 x_1 x_2 + 5 x_2².
    form = np.array([[1.0, 2.0], [2.0, 5.0]])
    assert coefficients_of(form).tolist() == [1.0, 4.0, 5.0]
    assert form_of(np.array([1.0, 4.0, 5.0])).tolist() == form.tolist()
    assert quadratic_features(np.array([2.0, 3.0])).tolist() == [4.0, 6.0, 9.0]


def test_hamilton_jacobi_bellman_residual_vanishes_at_the_optimum_of_both_examples():
    # Example 2 by its closed form; rounding of numbers up to about 100.
    states = np.random.default_rng(0).standard_normal((1000, 3)) * 3
    assert np.abs(example_two().hjb_residual(example_two().optimum, states[:, :2])).max() < 1e-12
    assert np.abs(linear().hjb_residual(linear().optimum, states)).max() < 1e-11
    away = example_two().optimum + 0.1
    assert np.abs(example_two().hjb_residual(away, states[:, :2])).max() > 0.1


def test_optimal_control_of_example_two_is_minus_x2_sin_x1():
    states = np.random.default_rng(1).standard_normal((50, 2))
    system = example_two()
    expected = -states[:, 1] * np.sin(states[:, 0])
    assert_allclose(system.policy(system.optimum, states)[:, 0], expected, rtol=0, atol=1e-15)
    # ω_0 = (−1, 3, 1.5) is u_0 = −(3/2) sin(x_1)(x_1 + x_2).
    first = -1.5 * np.sin(states[:, 0]) * states.sum(-1)
    assert_allclose(system.policy(system.start, states)[:, 0], first, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("system", "n_weights"), [(linear(), 6), (example_two(), 3)], ids=["linear", "example_two"])
def test_random_segments_determine_every_weight(system, n_weights):
    # Columns of kron(x, x) would leave 3 of 9 open in Example 1; monomials leave none.
    starts = random_states(20, len(system.start), seed=0)(0)
    segments = record_segments(system, system.start, starts, np.array([0.0, LENGTH]))
    features = quadratic_features(segments.states)
    assert np.linalg.matrix_rank(features[:, 0] - features[:, 1]) == n_weights == features.shape[-1]


@pytest.mark.parametrize("rule", [trapezoid(5, LENGTH), gauss_legendre(3, LENGTH), papers_rule(7)])
def test_data_of_a_linear_plant_lead_where_the_data_free_oracle_does(rule):
    # Integrals of a linear plant are quadratic forms of the start, so least squares is exact on them: what is left is
    # the integrator's 1e-12, raised by the conditioning of short segments.
    by_data = iterate_policies(linear(), rule, random_states(20, 3, seed=0), n_iterations=10)[-1]
    by_oracle = iterate_by_quadrature(example_one(), np.zeros((1, 3)), rule, n_iterations=10)
    assert_allclose(by_data, by_oracle, rtol=0, atol=1e-9)


def test_one_recording_serves_every_rule():
    system, rules = linear(), [trapezoid(5, LENGTH), gauss_legendre(4, LENGTH), trapezoid(9, LENGTH)]
    starts = random_states(12, 3, seed=3)(0)
    shared = record_segments(system, system.start, starts, times_of(rules))
    for rule in rules:
        alone = evaluate_segments(record_segments(system, system.start, starts, times_of([rule])), rule)
        assert_allclose(evaluate_segments(shared, rule).form, alone.form, rtol=0, atol=1e-10)
    assert_allclose(
        evaluate_segments(shared, rules[1]).form,
        form_of_gain(example_one(), gain_of(example_one(), system.start)),
        rtol=0,
        atol=1e-9,
    )


def test_example_two_is_learned_to_the_integrators_floor_with_a_fine_rule():
    system = example_two()
    forms = iterate_policies(system, gauss_legendre(5, LENGTH), random_states(20, 2, seed=0), n_iterations=10)
    assert system.value_error(forms[-1]) < 1e-11


def test_carried_states_reproduce_the_papers_errors_of_example_two():
    # The authors' arrays for 9 nodes: trapezoid 3.219e-5, Matérn 1.165e-6, at the iteration at which they stop; one
    # path from (1, 1), never reset. Later iterations see other parts of the path: within 2 %.
    for rule, recorded in ((trapezoid(9, LENGTH), 3.219e-5), (papers_rule(9), 1.165e-6)):
        forms = carried_iterations(example_two(), rule, np.array([1.0, 1.0]), n_segments=20, n_iterations=8)
        assert_allclose(example_two().value_error(forms[-1]), recorded, rtol=2e-2)


def test_excess_cost_of_the_papers_first_figure_without_its_floor():
    # The figure's (J − J*)·10³ after 4 iterations less the constant 1.337 that its baseline leaves: trapezoid with 2
    # and 3 nodes 3.72 and 0.234, Matérn 663 (2 nodes: 180 times the trapezoid's) and 0.063.
    start = np.array([[-100.0, 100.0]])
    recorded = {
        (trapezoid(2, LENGTH)): 3.72,
        trapezoid(3, LENGTH): 0.234,
        papers_rule(2): 663.4,
        papers_rule(3): 0.063,
    }
    for rule, expected in recorded.items():
        form = carried_iterations(example_two(), rule, np.array([1.0, 1.0]), n_segments=20, n_iterations=4)[-1]
        gap = float(excess_cost(example_two(), form, start, horizon=30.0)[0])
        assert_allclose(1e3 * gap, expected, rtol=1e-2)


def test_excess_cost_along_paths_is_the_trace_formula_of_a_linear_plant():
    # Σ over the unit vectors of J − V* is tr(P_K − P*).
    system, gain_error = linear(), np.diag([0.0, 0.0, 0.3])
    form = system.optimum + gain_error
    by_paths = excess_cost(system, form, np.eye(3), horizon=80.0).sum()
    assert_allclose(by_paths, true_gap(example_one(), gain_of(example_one(), form)), rtol=1e-9)


def test_a_rule_whose_nodes_were_not_recorded_is_refused():
    system = linear()
    segments = record_segments(system, system.start, random_states(12, 3, seed=0)(0), times_of([trapezoid(5, LENGTH)]))
    with pytest.raises(ValueError, match="a node of the rule is not among the recorded times"):
        evaluate_segments(segments, trapezoid(4, LENGTH))


def test_too_few_segments_are_refused():
    system, rule = linear(), trapezoid(5, LENGTH)
    with pytest.raises(ValueError, match="4 segments determine 4 of 6 weights: draw more segments"):
        iterate_policies(system, rule, random_states(4, 3, seed=0), n_iterations=1)


def test_rules_of_different_lengths_cannot_share_segments():
    with pytest.raises(ValueError, match=r"rules of lengths \[0.1, 0.2\]"):
        times_of([trapezoid(3, 0.1), trapezoid(3, 0.2)])
