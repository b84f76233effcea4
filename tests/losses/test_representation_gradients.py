"""What BEER's two gradients move, and that a critic trained with them still comes to the exact values."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posttrain.losses import total
from posttrain.losses.representation import FeatureValues, beer_cosine, beer_hinge
from posttrain.losses.td import TransitionValues, td_squared
from tests.losses.feature_draws import GAMMA, MODES, draw, firing, paper_bound, penalty


# 9: gradients. The frozen parts are constants of the function whose differences are taken.
def test_hinge_gradient_is_that_of_the_squared_distance_at_fixed_scale():
    v = firing(5)
    scale = 2 * GAMMA * v.phi.norm(dim=-1) * v.next_phi.norm(dim=-1)
    phi = v.phi.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(beer_hinge, replace(v, phi=phi)).sum(), phi)
    expected = -2 * (v.phi - GAMMA * v.next_phi) / scale.unsqueeze(-1)  # d/dφ of −|φ − γ φ'|² / scale
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_cosine_gradient_agrees_with_differences_of_the_cosine():
    v = firing(5)
    phi = v.phi.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(beer_cosine, replace(v, phi=phi)).sum(), phi)
    step = 1e-6
    for i, j in ((0, 0), (2, 7), (4, 15)):
        moved = [v.phi.clone(), v.phi.clone()]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        high, low = (paper_bound(replace(v, phi=m))[0][i] for m in moved)
        # Central differences of cos err by step² and by 1e-16/step.
        assert gradient[i, j].item() == pytest.approx(((high - low) / (2 * step)).item(), abs=1e-8)


def test_gradcheck_holds_where_no_part_is_frozen():
    # With φ' and the scale as inputs of the loss held at their values, gap and cosine are what is differentiated.
    v = firing(3)
    phi = v.phi.clone().requires_grad_()
    fixed = (2 * GAMMA * v.phi.norm(dim=-1) * v.next_phi.norm(dim=-1)).detach()

    def at_fixed_scale(x: Tensor) -> Tensor:
        scale = 2 * GAMMA * x.detach().norm(dim=-1) * v.next_phi.norm(dim=-1)
        return penalty(beer_hinge, replace(v, phi=x)) * scale / fixed

    assert torch.autograd.gradcheck(at_fixed_scale, (phi,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_head_end_and_inflow_get_no_gradient(mode):
    v = firing()
    leaves = {
        name: getattr(v, name).clone().requires_grad_() for name in ("phi", "next_phi", "weight", "bias", "inflow")
    }
    penalty(mode, replace(v, **leaves)).sum().backward()
    assert leaves.pop("phi").grad.abs().min() > 0
    assert [name for name, leaf in leaves.items() if leaf.grad is not None] == []


@pytest.mark.parametrize("mode", MODES)
def test_split_batches_have_the_same_gradient(mode):
    v = firing(9)
    counts = {"segment": 9.0}
    whole, parts = (v.phi.clone().requires_grad_() for _ in range(2))
    total(mode(replace(v, phi=whole), coef=0.1, unit="segment"), counts).backward()
    for rows in (slice(0, 2), slice(2, 9)):
        part = replace(v, phi=parts[rows], next_phi=v.next_phi[rows], inflow=v.inflow[rows], carry=v.carry[rows])
        total(mode(part, coef=0.1, unit="segment"), counts).backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-15)


def test_float32_keeps_the_penalty_of_nearly_equal_features():
    # φ' = φ/γ + 1e-4 noise and r = 1.5 |w| |D|: cos and U differ by 1e-9, which cos − U in float32 rounds away.
    v = draw(seed=4)
    noise = torch.randn(v.phi.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    next_phi = v.phi / GAMMA + 1e-4 * noise
    inflow = 1.5 * v.weight.norm() * (v.phi - GAMMA * next_phi).norm(dim=-1)
    exact = penalty(beer_hinge, replace(v, next_phi=next_phi, inflow=inflow))
    low = FeatureValues(
        *(getattr(v, name).float() for name in ("phi",)),
        next_phi.float(),
        v.weight.float(),
        v.bias.float(),
        inflow.float(),
        v.carry.float(),
    )
    assert exact.max() < 1e-7
    # |D| is 4e-4 of features that are rounded at 6e-8: a relative error below 2e-3.
    torch.testing.assert_close(penalty(beer_hinge, low).double(), exact, rtol=2e-3, atol=0)


# 11: convergence with one-hot features.
@pytest.mark.parametrize("mode", MODES)
def test_tabular_critic_with_penalty_reaches_the_dynamic_programming_solution(mode):
    # Five states in a row, actions stay (reward −0.1) and go (reward 1 on reaching the end, which is terminal).
    n_states, n_pairs = 5, 10
    go = torch.tensor([False, True] * n_states)
    state = torch.arange(n_states).repeat_interleave(2)
    next_state = torch.where(go, state + 1, state).clamp(max=n_states - 1)
    is_end = go & (state == n_states - 1)
    reward = torch.where(is_end, 1.0, torch.where(go, 0.0, -0.1)).double()
    carry = torch.where(is_end, 0.0, GAMMA).double()
    # Going on from state s gains 1 after 5 − s steps: Q*(s, go) = γ^(4−s), Q*(s, stay) = −0.1 + γ · γ^(4−s).
    best = GAMMA ** (n_states - 1 - torch.arange(n_states, dtype=torch.float64))
    expected = torch.where(go, best[state], -0.1 + GAMMA * best[state])
    weight = torch.full((n_pairs,), 0.01, dtype=torch.float64, requires_grad=True)
    phi = torch.eye(n_pairs, dtype=torch.float64, requires_grad=True)
    for _ in range(6000):
        q = phi @ weight
        greedy = 2 * next_state + q.detach().view(n_states, 2)[next_state].argmax(-1)
        td = td_squared(TransitionValues(q, reward, carry, q.detach()[greedy], torch.ones_like(reward)))
        features = FeatureValues(phi, phi[greedy], weight, torch.zeros((), dtype=torch.float64), reward, carry)
        loss = total((*td, *mode(features, coef=1e-2, unit="transition")), {"transition": 1.0})
        gradients = torch.autograd.grad(loss, (weight, phi))
        with torch.no_grad():
            weight -= 0.05 * gradients[0]
            phi -= 0.05 * gradients[1]
    assert ((phi @ weight).detach() - expected).abs().max() < 1e-6
    assert penalty(mode, features).max() < 1e-6
