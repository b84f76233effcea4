"""The forms of OREO against loops written from the equations, and what each of their terms may move.

Rows hold several policy spans with foreign tokens between them, rewards on many actions, and steps within spans.
Float64 sums of a dozen numbers of order 1: equal to 1e-13.
"""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from posttrain.losses import (
    critic_only,
    effective_temperature,
    later_sum,
    log_ratio,
    next_state_index,
    oreo_one_step,
    oreo_response,
    oreo_step,
    oreo_token,
    path_residual,
    total,
)
from posttrain.losses.oreo import residual
from posttrain.schema import TokenValues
from tests import reference
from tests.tree_mdp import multi_turn_values, rows_of

BETA = 0.3
ALPHA = 0.7
EXACT = {"rtol": 0, "atol": 1e-13}
FORMS = {
    oreo_token: reference.oreo_token,
    oreo_step: reference.oreo_step,
    oreo_response: reference.oreo_response,
    oreo_one_step: reference.oreo_one_step,
}
OBJECTIVES = pytest.mark.parametrize("objective", FORMS)


def values_for(objective, seed: int = 0) -> TokenValues:
    """Steps as states for oreo_step; every action a state for the others."""
    v = multi_turn_values(seed)
    return v if objective is oreo_step else replace(v, is_state=v.is_action)


def with_afterstates(v: TokenValues) -> TokenValues:
    """States where the environment moves, just after turns of row 1 (0..2 and 5..7) and of row 3 (3..5)."""
    is_state = v.is_state.clone()
    for b, t in ((1, 3), (1, 8), (3, 6)):
        assert not v.is_action[b, t]
        is_state[b, t] = True
    return replace(v, is_state=is_state)


def term(objective, v: TokenValues, name: str, alpha: float = ALPHA):
    (found,) = [term for term in objective(v, beta=BETA, alpha=alpha) if term.name == name]
    return found


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True))


@OBJECTIVES
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("states", [lambda v: v, with_afterstates], ids=["actions", "with_afterstates"])
def test_value_and_policy_terms_equal_the_hand_loop(objective, seed, states):
    # O11 and O12: sums by shift and gather, across observation gaps, against a loop over spans.
    v = states(values_for(objective, seed))
    expected = FORMS[objective](rows_of(v), beta=BETA)
    for name, losses, grad, leaf in (
        ("value", expected.value_loss, expected.value_grad, v.value),
        ("policy", expected.policy_loss, expected.policy_grad, v.logp),
    ):
        loss = term(objective, v, name).value
        assert_close(loss.sum(-1), torch.from_numpy(losses), **EXACT)
        assert_close(gradients(loss.sum(), leaf)[0], torch.from_numpy(grad), **EXACT)
        assert abs(grad).max() > 0.1


def test_step_and_token_losses_differ_on_the_same_rows():
    # Guards the parametrised test above: with the same states the two forms share values but not gradients.
    v = values_for(oreo_step)
    token, step = (gradients(term(f, v, "policy").value.sum(), v.logp)[0] for f in (oreo_token, oreo_step))
    assert (token - step).abs().max() > 0.01


@OBJECTIVES
def test_kl_term_is_alpha_times_the_row_mean_over_actions(objective):
    v = values_for(objective)
    kl = term(objective, v, "kl_ref")
    assert_close(kl.value.sum(-1), torch.from_numpy(reference.row_mean(v.kl.numpy(), v.is_action.numpy())), **EXACT)
    assert (kl.unit, kl.coef) == ("sequence", ALPHA)


def test_one_literal_row_by_hand():
    # One row, two actions: V = (0.5, 0.25), ρ = (0.2, −0.4), r = (0, 1), β = 0.5, α = 0.1, KL = (0.3, 0.1).
    # gain_1 = 1 + 0.2 = 1.2, gain_0 = 1.2 − 0.1 = 1.1;  δ = (0.5 − 1.1, 0.25 − 1.2) = (−0.6, −0.95).
    # L_V = L_π = (0.36 + 0.9025) / 2 = 0.63125;  KL row mean 0.2;  total = 1.2625 + 0.02 = 1.2825.
    def row(*numbers: float) -> torch.Tensor:
        return torch.tensor([numbers], dtype=torch.float64)

    is_here = torch.ones(1, 2, dtype=torch.bool)
    logp, value = row(-1.0, -2.0).requires_grad_(True), row(0.5, 0.25).requires_grad_(True)
    v = TokenValues(logp, row(-1.2, -1.6), row(0.3, 0.1), row(0.0, 0.0), value, row(0.0, 1.0), is_here, is_here)
    loss = total(oreo_token(v, beta=0.5, alpha=0.1), {"sequence": 1})
    assert_close(loss, torch.tensor(1.2825, dtype=torch.float64), **EXACT)
    logp_grad, value_grad = gradients(loss, logp, value)
    assert_close(value_grad, row(-0.6, -0.95), **EXACT)  # 2 δ / 2
    assert_close(logp_grad, row(-0.3, -0.475), **EXACT)  # 2 β δ / 2


@pytest.mark.parametrize("objective", [oreo_token, oreo_step, oreo_one_step])
def test_policy_term_of_one_state_gives_later_actions_no_gradient(objective):
    v = values_for(objective)
    loss = term(objective, v, "policy").value
    bounds = next_state_index(v.is_state)
    for b, t in v.is_state.nonzero().tolist():
        (grad,) = torch.autograd.grad(loss[b, t], (v.logp,), retain_graph=True)
        own_end = t + 1 if objective is oreo_token else int(bounds[b, t])
        moved = grad.nonzero().tolist()
        assert moved == [[b, i] for i in range(t, own_end) if v.is_action[b, i]]


@OBJECTIVES
def test_metrics_equal_their_loops(objective):
    v = values_for(objective)
    rows = rows_of(v)
    n_rows = range(len(rows.logp))
    delta = [[abs(reference.residual(rows, b, t, beta=BETA)) for t in reference.states_of(rows, b)] for b in n_rows]
    rho = [[(rows.logp - rows.ref_logp)[b, t] for t in range(12) if rows.is_action[b, t]] for b in n_rows]
    n_actions = v.is_action.sum(-1).tolist()
    n_moved = [1] * 4 if objective is oreo_response else v.is_state.sum(-1).tolist()
    expected = {
        "beta_eff": [BETA + ALPHA / (2 * BETA) * n / m for n, m in zip(n_moved, n_actions, strict=True)],
        "value/mean": reference.row_mean(rows.value, rows.is_state),
        "value/bellman_residual": [sum(d) / len(d) for d in delta],
        "policy/log_ratio": [sum(r) for r in rho],
        "policy/entropy": reference.row_mean(v.entropy.numpy(), rows.is_action),
        "reward": [sum(rows.reward[b]) for b in n_rows],
    }
    metrics = {t.name: t for t in objective(v, beta=BETA, alpha=ALPHA) if not t.coef}
    assert metrics.keys() == expected.keys()
    for name, metric in metrics.items():
        per_row = metric.value if metric.value.ndim == 1 else metric.value.sum(-1)
        assert_close(per_row, torch.as_tensor(expected[name], dtype=torch.float64), **EXACT)
        assert metric.unit == "sequence"


@OBJECTIVES
def test_intermediate_reward_reaches_the_states_before_it_and_none_after(objective):
    # Raising r at position k by 1 lowers δ_t by 1 for t <= k; V's gradient 2δ/n_b falls by 2/n_b there and only there.
    v = values_for(objective)
    b, k = 1, 6
    raised = v.reward.clone()
    raised[b, k] += 1.0
    before, after = (
        gradients(term(objective, w, "value").value.sum(), v.value)[0] for w in (v, replace(v, reward=raised))
    )
    n_states = v.is_state[b].sum()
    expected = torch.zeros_like(before)
    expected[b, : k + 1] = torch.where(v.is_state[b, : k + 1], -2.0 / n_states, 0.0)
    assert_close(after - before, expected, **EXACT)


def test_residual_function_equals_the_loop():
    v = multi_turn_values(2)
    rho = log_ratio(v.logp, v.ref_logp, v.is_action)
    delta = residual(v, rho + later_sum(rho), beta=BETA)
    rows = rows_of(v)
    for b, t in v.is_state.nonzero().tolist():
        assert delta[b, t].item() == pytest.approx(reference.residual(rows, b, t, beta=BETA), abs=1e-13)


def test_one_step_residual_needs_the_next_state_and_not_the_next_position():
    # O11: across an observation the neighbouring position is no state of the policy, so V there must not be read.
    v = multi_turn_values(3)
    v = replace(v, is_state=v.is_action)
    gain = v.reward - BETA * log_ratio(v.logp, v.ref_logp, v.is_action)
    shifted = torch.cat((v.value[:, 1:], torch.zeros_like(v.value[:, :1])), dim=-1)
    by_shift = torch.where(v.is_state, path_residual(v.value, gain, shifted), 0.0)
    n_states = v.is_state.sum(-1, keepdim=True)
    by_index = term(oreo_one_step, v, "policy").value * n_states
    expected = torch.from_numpy(reference.one_step_residuals(rows_of(v), beta=BETA))
    assert_close(by_index, expected.square(), **EXACT)
    assert (by_shift - expected).abs().max() > 0.1


def test_one_step_residuals_add_up_to_the_path_residual():
    # δ_t = Σ over the states from t on of the one-step residuals, whatever V is: the values between cancel.
    v = values_for(oreo_step, 4)
    one_step = torch.from_numpy(reference.one_step_residuals(rows_of(v), beta=BETA))
    rho = log_ratio(v.logp, v.ref_logp, v.is_action)
    delta = residual(v, rho + later_sum(rho), beta=BETA)
    summed = one_step.flip(-1).cumsum(-1).flip(-1)
    assert_close(delta[v.is_state], summed[v.is_state], **EXACT)


@OBJECTIVES
def test_critic_is_the_same_in_every_form_and_alone(objective):
    v = multi_turn_values(5)
    alone, *_ = critic_only(v, beta=BETA)
    assert_close(term(objective, v, "value").value, alone.value, **EXACT)
    terms = critic_only(v, beta=BETA)
    assert [t.name for t in terms if t.coef] == ["value"]
    assert [t.name for t in terms if t.value.requires_grad] == ["value"]
    assert torch.count_nonzero(gradients(alone.value.sum(), v.logp)[0]) == 0


@OBJECTIVES
def test_afterstate_moves_neither_the_policy_nor_its_residuals(objective):
    # Every form but the one-step form has the policy term it had: residuals are suffix sums, and no action is added.
    # The one-step form reads V of the afterstate instead of V of the next turn; its loop holds it above.
    v = values_for(objective)
    before, after = (term(objective, w, "policy").value for w in (v, with_afterstates(v)))
    assert torch.count_nonzero(after[~v.is_action]) == 0
    if objective is not oreo_one_step:
        assert_close(after, before, **EXACT)


def test_value_of_an_afterstate_learns_the_turns_that_follow_it():
    # Row 1 has turns 0..2, 5..7 and 10..11. Its afterstate 8 gets 2 δ / n_b, δ = V_8 − Σ_{i>=10} (r_i − β ρ_i), and
    # n_b = 8 actions + 2 afterstates.
    v = with_afterstates(values_for(oreo_token))
    (grad,) = gradients(term(oreo_token, v, "value").value.sum(), v.value)
    rho = (v.logp - v.ref_logp).detach()
    gain = sum(v.reward[1, i] - BETA * rho[1, i] for i in (10, 11))
    assert_close(grad[1, 8], 2 * (v.value[1, 8].detach() - gain) / 10, **EXACT)


@pytest.mark.parametrize(("level", "expected"), [("token", 0.5 + 0.1), ("step", 0.5 + 0.1 / 2), ("response", 0.55)])
def test_effective_temperature_counts_residuals_per_token(level, expected):
    # β = 0.5, α = 0.1: α/(2β) = 0.1. Two tokens in one step or one response halve it.
    is_here = torch.ones(1, 2, dtype=torch.bool)
    first = torch.tensor([[True, False]])
    zero = torch.zeros(1, 2, dtype=torch.float64)
    v = TokenValues(zero, zero, zero, zero, zero, zero, is_here, first if level == "step" else is_here)
    objective = {"token": oreo_token, "step": oreo_step, "response": oreo_response}[level]
    (metric,) = [t for t in objective(v, beta=0.5, alpha=0.1) if t.name == "beta_eff"]
    assert metric.value.tolist() == pytest.approx([expected], abs=1e-7)
    assert effective_temperature(beta=0.5, alpha=0.1) == pytest.approx(0.6, abs=1e-15)


@pytest.mark.parametrize("name", ["value", "kl_ref"])
@OBJECTIVES
def test_gradcheck_passes_for_terms_without_a_partial_stop(objective, name):
    # The policy term is a semi-gradient: numerical differences see the stopped part too, so the loop above holds it.
    v = values_for(objective)
    leaf = v.value if name == "value" else v.kl
    field = "value" if name == "value" else "kl"

    def loss(x: torch.Tensor) -> torch.Tensor:
        return term(objective, replace(v, **{field: x}), name).value.sum()

    assert torch.autograd.gradcheck(loss, leaf.detach().clone().requires_grad_(True))
