"""BEER's penalty against its theorem, in float64. Rounding of sums of 16 squares is about 1e-15, hence 1e-12."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from posttrain.losses import path_residual, total
from posttrain.losses.representation import FeatureValues, beer_cosine, beer_hinge, beer_released, dr3, infer
from tests.losses.feature_draws import GAMMA, MODES, draw, firing, metric, paper_bound, penalty


# 1 to 3: the bound holds under consistency, is the identity of the gap, and is tight.
@pytest.mark.parametrize("seed", range(5))
def test_cosine_is_at_most_the_bound_where_the_critic_is_consistent(seed: int):
    v = draw(256, seed=seed, consistent=True)
    cosine, upper = paper_bound(v)
    assert (upper - cosine).min() >= -1e-12
    torch.testing.assert_close(metric(v, "bound"), upper, rtol=1e-10, atol=0)
    torch.testing.assert_close(metric(v, "cosine"), cosine, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("v", [draw(512, seed=1), firing(512)], ids=["any reward", "large reward"])
def test_penalty_is_the_excess_over_the_papers_bound_for_any_reward(mode, v: FeatureValues):
    cosine, upper = paper_bound(v)
    torch.testing.assert_close(penalty(mode, v), (cosine - upper).relu(), rtol=1e-10, atol=1e-12)
    gap = (v.phi - GAMMA * v.next_phi).square().sum(-1) - v.inflow.square() / v.weight.square().sum()
    norms = v.phi.norm(dim=-1) * v.next_phi.norm(dim=-1)
    torch.testing.assert_close(2 * GAMMA * norms * (upper - cosine), gap, rtol=1e-10, atol=1e-12)


def test_bound_is_tight_when_the_difference_of_features_is_parallel_to_w():
    v = draw(seed=2)
    next_phi = (v.phi - 0.1 * v.weight) / GAMMA  # D = 0.1 w
    v = replace(v, next_phi=next_phi, inflow=(v.phi - GAMMA * next_phi) @ v.weight)
    assert (metric(v, "bound") - metric(v, "cosine")).abs().max() < 1e-12


# 4 and 5: when it cannot fire, and what it certifies when it does.
@pytest.mark.parametrize("mode", MODES)
def test_penalty_and_gradient_are_exactly_zero_without_reward(mode):
    v = replace(draw(), inflow=torch.zeros(64, dtype=torch.float64), phi=draw().phi.requires_grad_())
    value = penalty(mode, v)
    value.sum().backward()
    assert value.abs().max() == 0
    assert v.phi.grad.abs().max() == 0
    assert metric(v, "bound").min() >= 1


def test_penalty_certifies_a_residual_of_at_least_the_reward_that_features_cannot_explain():
    v = draw(4096, d=4, seed=3, bias=0.3)
    value = v.phi @ v.weight + v.bias
    next_value = v.next_phi @ v.weight + v.bias
    residual = path_residual(value, v.inflow, v.carry * next_value).abs()
    unexplained = v.effective_inflow().abs() - v.weight.norm() * (v.phi - GAMMA * v.next_phi).norm(dim=-1)
    is_firing = penalty(beer_hinge, v) > 0
    assert 200 < is_firing.sum() < 3900  # both cases occur
    assert (unexplained[is_firing] > 0).all()
    assert (residual[is_firing] >= unexplained[is_firing] - 1e-12).all()


# 6: bias and terminals.
def chain_with_bias() -> tuple[FeatureValues, Tensor]:
    """Five states in a row, the last step ends; features that represent Q = [4, 3, 2, 1, 0] + rewards exactly."""
    reward = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)
    carry = torch.tensor([GAMMA] * 4 + [0.0], dtype=torch.float64)
    q = torch.zeros(6, dtype=torch.float64)
    for state in reversed(range(5)):
        q[state] = reward[state] + carry[state] * q[state + 1]
    weight, bias = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    phi = torch.stack(((q - bias) / 2, torch.full_like(q, 0.2)), dim=-1)  # φ·w + b = Q
    return FeatureValues(phi[:5], phi[1:], weight, bias, reward, carry), q


@pytest.mark.parametrize("mode", MODES)
def test_exact_critic_with_bias_and_terminal_is_not_penalised(mode):
    v, q = chain_with_bias()
    torch.testing.assert_close(v.phi @ v.weight + v.bias, q[:5], rtol=0, atol=1e-12)
    assert penalty(mode, v).max() < 1e-12


def test_raw_reward_penalises_an_exact_critic_with_bias():
    v, _ = chain_with_bias()
    raw = replace(v, inflow=v.inflow + (1 - v.carry) * v.bias)  # the penalty then takes r itself for r_eff
    # In the first row r_eff = 1 − 0.1 · 5 and D = (0.25, 0.02): 1/4 is more than |D|².
    assert penalty(beer_hinge, raw)[0] > 0.01


def test_released_penalty_fires_on_an_exact_critic_and_equals_the_theorem_where_its_defects_vanish():
    v, _ = chain_with_bias()
    released = partial(beer_released, discount=GAMMA, coef=1.0, unit="segment")
    assert released(v, online_next_phi=v.next_phi)[0].value[0] > 0.01
    clean = firing()  # no bias, no terminal
    torch.testing.assert_close(
        released(clean, online_next_phi=clean.next_phi)[0].value, penalty(beer_cosine, clean), rtol=1e-10, atol=0
    )
    # With φ' of the online networks twice as long, its bound is higher and the penalty smaller by 3 γ |φ'| / 2|φ|.
    mixed = released(clean, online_next_phi=2 * clean.next_phi)[0].value
    higher = 1.5 * GAMMA * clean.next_phi.norm(dim=-1) / clean.phi.norm(dim=-1)
    torch.testing.assert_close(mixed, penalty(beer_cosine, clean) - higher, rtol=1e-9, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_end_or_have_no_features_add_nothing_and_get_no_gradient(mode):
    v = firing(4)
    phi = v.phi.clone()
    phi[2] = 0.0
    next_phi = v.next_phi.clone()
    next_phi[1] = float("nan")  # of a terminal row nobody may read it
    next_phi[3] = 0.0
    carry = torch.tensor([GAMMA, 0.0, GAMMA, GAMMA], dtype=torch.float64)
    v = replace(v, phi=phi.requires_grad_(), next_phi=next_phi, carry=carry)
    value = penalty(mode, v)
    value.sum().backward()
    assert (value > 0).tolist() == [True, False, False, False]
    assert (v.phi.grad[1:] == 0).all()
    assert (v.phi.grad[0] != 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_head_of_zeros_has_no_bound_and_is_not_penalised(mode):
    v = replace(firing(8), weight=torch.zeros(16, dtype=torch.float64))
    assert penalty(mode, v).tolist() == [0.0] * 8


# 7 and 8: invariances and shapes.
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("c", [1e-3, 7.0])
def test_penalty_is_unchanged_when_features_grow_as_the_head_shrinks(mode, c: float):
    v = firing()
    scaled = replace(v, phi=c * v.phi, next_phi=c * v.next_phi, weight=v.weight / c)
    torch.testing.assert_close(penalty(mode, scaled), penalty(mode, v), rtol=1e-10, atol=0)


@pytest.mark.parametrize("n", [1, 2, 257])
def test_each_row_of_a_batch_is_penalised_as_if_alone(n: int):
    v = firing(n)
    for i in {0, n // 2, n - 1}:
        row = slice(i, i + 1)
        alone = replace(v, phi=v.phi[row], next_phi=v.next_phi[row], inflow=v.inflow[row], carry=v.carry[row])
        torch.testing.assert_close(penalty(beer_hinge, v)[row], penalty(beer_hinge, alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "shape"), [("inflow", (8, 1)), ("carry", (8, 1)), ("weight", (1, 16)), ("bias", (1,))]
)
def test_shapes_that_would_broadcast_are_refused(name: str, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=rf"{name} is \({shape[0]},"):
        replace(firing(8), **{name: torch.ones(shape, dtype=torch.float64)})


# Peers
def test_dr3_pushes_features_apart_even_where_the_critic_is_consistent():
    # ⟨(1, 2), (3, 1)⟩ = 5 and its gradient in φ is φ'; the terminal row counts nothing.
    phi = torch.tensor([[1.0, 2.0], [4.0, 4.0]], requires_grad=True)
    v = FeatureValues(
        phi,
        torch.tensor([[3.0, 1.0], [9.0, 9.0]]),
        torch.ones(2),
        torch.tensor(0.0),
        torch.zeros(2),
        torch.tensor([0.5, 0.0]),
    )
    (term,) = dr3(v, coef=0.1, unit="segment")
    total((term,), {"segment": 1.0}).backward()
    assert term.value.tolist() == [5.0, 0.0]
    torch.testing.assert_close(phi.grad, torch.tensor([[0.3, 0.1], [0.0, 0.0]]))


def test_infer_is_zero_where_scaled_heads_are_unchanged_and_squares_what_moved():
    now = torch.tensor([[2.0, 4.0], [3.0, 4.0]])
    at_start = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    (term,) = infer(now, at_start, scale=2.0, coef=0.1, unit="transition")
    assert term.value.tolist() == [0.0, 0.5]  # ((3 − 2)² + 0) / 2
    with pytest.raises(ValueError, match=r"heads are \(2, 2\), at the start \(2, 1\)"):
        infer(now, at_start[:, :1], scale=2.0, coef=0.1, unit="transition")
