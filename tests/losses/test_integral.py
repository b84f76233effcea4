"""Policy evaluation along segments against numbers by hand, and its two solvers against each other. All in float64."""

import math

import pytest
import torch
from torch.testing import assert_close

from posttrain.losses import total
from posttrain.losses.integral import SegmentValues, inflow, policy_evaluation, solve_linear_value

EXACT = {"rtol": 0, "atol": 1e-13}


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def random_segments(n_segments: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features at both ends, costs at three nodes, weights of the nodes."""
    generator = torch.Generator().manual_seed(0)
    features, ends = torch.randn(2, n_segments, 3, dtype=torch.float64, generator=generator)
    cost = torch.rand(n_segments, 3, dtype=torch.float64, generator=generator)
    return features, 0.5 * ends, cost, tensor(0.1, 0.4, 0.1)


def test_term_is_the_squared_residual_of_each_segment():
    # 5 − (0.5·1 + 0.25·4 + 2) = 1.5 and 1 − (0.5·2 + 0.25·0 + 3) = −3.
    cost = torch.tensor([[1.0, 4.0], [2.0, 0.0]], dtype=torch.float64)
    loss, metric = policy_evaluation(SegmentValues(tensor(5, 1), tensor(2, 3), cost, tensor(0.5, 0.25)))
    assert loss.value.tolist() == [2.25, 9.0]
    assert metric.value.tolist() == [1.5, 3.0]
    assert (loss.unit, loss.coef, metric.coef) == ("segment", 1.0, 0.0)


def test_weights_may_differ_by_segment_as_irregular_samples_need():
    cost = torch.tensor([[1.0, 4.0], [2.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[0.5, 0.25], [1.0, 2.0]], dtype=torch.float64)
    assert inflow(cost, weight).tolist() == [1.5, 4.0]


def test_residual_is_zero_for_the_value_of_a_decaying_state():
    # dx/dt = −x with cost x² has V = x²/2. From x_0 = 2 over T = 1 the cost integrates to 2(1 − e⁻²), which a rule of
    # one node renders exactly when the cost is constant; here the integral itself stands at that node.
    integral = 2 * (1 - math.exp(-2))
    v = SegmentValues(tensor(2.0), tensor(2 * math.exp(-2)), tensor(integral)[None], tensor(1.0))
    assert policy_evaluation(v)[0].value.item() < 1e-30


def test_gradient_moves_both_ends_and_leaves_the_cost_alone():
    # d/dV δ² = 2δ = 3 and d/dV_T δ² = −3 with δ = 1.5.
    value, end = tensor(5.0).requires_grad_(), tensor(2.0).requires_grad_()
    cost = torch.tensor([[1.5]], dtype=torch.float64, requires_grad=True)
    loss = total(policy_evaluation(SegmentValues(value, end, cost, tensor(1.0))), {"segment": 1})
    value_grad, end_grad, cost_grad = torch.autograd.grad(loss, (value, end, cost), materialize_grads=True)
    assert (value_grad.item(), end_grad.item(), cost_grad.item()) == (3.0, -3.0, 0.0)


def test_a_detached_end_gives_the_semi_gradient():
    value, end = tensor(5.0).requires_grad_(), tensor(2.0).requires_grad_()
    v = SegmentValues(value, end.detach(), tensor(1.5)[None], tensor(1.0))
    value_grad, end_grad = torch.autograd.grad(
        policy_evaluation(v)[0].value.sum(), (value, end), materialize_grads=True
    )
    assert (value_grad.item(), end_grad.item()) == (3.0, 0.0)


def test_rewards_in_place_of_costs_change_only_the_sign_of_the_residual():
    features, ends, cost, weight = random_segments(5)
    omega = tensor(1.0, -2.0, 0.5)
    as_cost = policy_evaluation(SegmentValues(features @ omega, ends @ omega, cost, weight))
    as_reward = policy_evaluation(SegmentValues(-features @ omega, -ends @ omega, -cost, weight))
    assert_close(as_reward[0].value, as_cost[0].value, **EXACT)


def test_loss_does_not_depend_on_how_segments_are_split():
    features, ends, cost, weight = random_segments(5)
    omega = tensor(1.0, -2.0, 0.5)

    def loss(rows: slice) -> torch.Tensor:
        v = SegmentValues(features[rows] @ omega, ends[rows] @ omega, cost[rows], weight)
        return total(policy_evaluation(v), {"segment": 5})

    assert_close(loss(slice(0, 1)) + loss(slice(1, 5)), loss(slice(None)), **EXACT)


def test_gradient_descent_reaches_the_weights_of_the_least_squares_solver():
    # The loss is quadratic with curvature 2DᵀD/S, D the feature differences: plain descent at 1/L contracts the error
    # by (1 − 1/condition²) a step, here below 1e-12 within 2,000 steps.
    features, ends, cost, weight = random_segments(30)
    solved = solve_linear_value(features, inflow(cost, weight), ends)
    difference = features - ends
    curvature = 2 * torch.linalg.matrix_norm(difference, ord=2) ** 2 / 30
    omega = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(2000):
        v = SegmentValues(features @ omega, ends @ omega, cost, weight)
        (gradient,) = torch.autograd.grad(total(policy_evaluation(v), {"segment": 30}), omega)
        omega = (omega - gradient / curvature).detach().requires_grad_()
    assert solved.condition < 2
    assert_close(omega, solved.weight, rtol=0, atol=1e-12)


def test_solver_returns_the_condition_of_the_feature_differences():
    # Differences diag(2, 1/2) have singular values 2 and 1/2: condition 4; weights 6/2 and 1/0.5.
    features = torch.diag(tensor(2.0, 0.5))
    solved = solve_linear_value(features, tensor(6.0, 1.0), torch.zeros_like(features))
    assert_close(solved.weight, tensor(3.0, 2.0), **EXACT)
    assert solved.condition == pytest.approx(4.0, rel=1e-14)


def test_features_that_repeat_one_another_are_refused_with_their_rank():
    # kron(x, x) has x_1 x_2 twice: rank 3 of 4.
    state = torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kron = (state[:, :, None] * state[:, None, :]).reshape(10, 4)
    with pytest.raises(ValueError, match=r"10 segments determine 3 of 4 weights.*drop features that repeat"):
        solve_linear_value(kron, torch.ones(10, dtype=torch.float64), 0.5 * kron)


def test_costs_read_at_other_nodes_than_the_rule_are_refused():
    with pytest.raises(ValueError, match=r"cost is \(1, 3\), weight is \(2,\): was the cost read at the rule's own"):
        inflow(torch.ones(1, 3), torch.ones(2))
