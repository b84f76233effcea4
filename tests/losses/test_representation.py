"""BEER's penalty against its theorem, in float64. Rounding of sums of 16 squares is about 1e-15, hence 1e-12."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from posttrain.losses import path_residual, total
from posttrain.losses.representation import FeatureValues, beer_cosine, beer_hinge, beer_released, dr3, infer
from posttrain.losses.td import TransitionValues, td_squared

GAMMA = 0.9
MODES = (beer_cosine, beer_hinge)


def draw(n: int = 64, d: int = 16, *, seed: int = 0, bias: float = 0.0, consistent: bool = False) -> FeatureValues:
    """Non-negative features as behind a ReLU; with `consistent` the reward that makes the residual 0."""
    generator = torch.Generator().manual_seed(seed)
    phi, next_phi = (torch.rand(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(d, generator=generator, dtype=torch.float64)
    carry = torch.full((n,), GAMMA, dtype=torch.float64)
    inflow = torch.randn(n, generator=generator, dtype=torch.float64)
    b = torch.tensor(bias, dtype=torch.float64)
    if consistent:
        inflow = phi @ weight + b - carry * (next_phi @ weight + b)
    return FeatureValues(phi, next_phi, weight, b, inflow, carry)


def firing(n: int = 64, *, seed: int = 0) -> FeatureValues:
    """Rewards so large that every row violates the bound."""
    v = draw(n, seed=seed)
    return replace(v, inflow=v.inflow.sign() * 20 * v.weight.norm())


def penalty(mode, v: FeatureValues) -> Tensor:
    return mode(v, coef=1.0, unit="segment")[0].value


def metric(v: FeatureValues, name: str) -> Tensor:
    return next(term.value for term in beer_hinge(v, coef=1.0, unit="segment") if term.name == f"beer/{name}")


def paper_bound(v: FeatureValues) -> tuple[Tensor, Tensor]:
    """cos and U of Remark 1, row by row in Python numbers."""
    rows = []
    for phi, next_phi, reward, gamma in zip(
        v.phi.tolist(), v.next_phi.tolist(), v.effective_inflow().tolist(), v.carry.tolist(), strict=True
    ):
        a, b = sum(x * x for x in phi), sum(x * x for x in next_phi)
        w2 = sum(x * x for x in v.weight.tolist())
        norms = (a * b) ** 0.5
        product = sum(x * y for x, y in zip(phi, next_phi, strict=True))
        rows.append((product / norms, (a + gamma**2 * b - reward**2 / w2) / (2 * gamma * norms)))
    cosine, upper = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    return cosine, upper


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
