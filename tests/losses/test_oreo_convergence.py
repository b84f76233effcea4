"""Where training on full tables ends: the soft optimum without KL, closed-form stationary points with it.

1,600 Adam steps with a cosine to 0 reach 1e-15 on these tables; 1e-10 admits other seeds and libraries, while a biased
objective (each has a test that shows one) misses by more than 1e-2.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import (
    at_next_state,
    effective_temperature,
    log_ratio,
    oreo_one_step,
    oreo_response,
    oreo_step,
    oreo_token,
    path_residual,
    suffix_sum,
)
from posttrain.schema import TokenValues
from tests import reference
from tests.tree_mdp import (
    BETA,
    Paths,
    Tree,
    build_tree,
    build_two_turns,
    fit,
    read_tables,
    rows_of,
    solve,
    solve_two_turns,
    weighted_total,
)

FITTED = {"rtol": 0, "atol": 1e-10}


def random_tables(n_states: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_states, 3, dtype=torch.float64, generator=generator)
    return logits, torch.randn(n_states, dtype=torch.float64, generator=generator)


def random_weight(n_rows: int, seed: int) -> Tensor:
    """A behaviour with full support that is neither the optimum nor uniform: shares of 1/3 to 3 times the mean."""
    noise = torch.randn(n_rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (noise / 2).softmax(-1)


@pytest.mark.parametrize(
    ("is_terminal_only", "is_length_weight_undone"), [(True, False), (False, False), (True, True)]
)
def test_joint_descent_reaches_the_soft_optimum_from_any_data_with_full_support(
    is_terminal_only, is_length_weight_undone
):
    # O3. Weighting each row by n_b undoes the loss's 1/n_b, which is the variant "mean over tokens".
    tree = build_tree(10, is_terminal_only=is_terminal_only)
    weight = random_weight(31, 10)
    if is_length_weight_undone:
        weight = weight * tree.paths.is_action.sum(-1)
    logits, value = random_tables(15, 10)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, value)
        return weighted_total(oreo_token(v, beta=BETA, alpha=0.0), weight)

    fit(loss, logits, value)
    optimum = solve(tree)
    assert_close(logits.softmax(-1), optimum.logp.exp(), **FITTED)
    assert_close(value, optimum.value, **FITTED)
    assert (optimum.logp.exp() - tree.ref_logp.exp()).abs().max() > 0.1  # there was something to learn


def test_response_level_descent_reaches_the_soft_optimum_and_every_value():
    # O4. Only first states move the policy; with full support the chain rule still fixes π at every token.
    tree = build_tree(11)
    weight = random_weight(31, 11)
    logits, value = random_tables(15, 11)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, value)
        return weighted_total(oreo_response(v, beta=BETA, alpha=0.0), weight)

    fit(loss, logits, value)
    optimum = solve(tree)
    # One residual per row ties all its tokens together, so the same number of steps ends near 1e-10.
    assert_close(logits.softmax(-1), optimum.logp.exp(), rtol=0, atol=1e-8)
    assert_close(value, optimum.value, rtol=0, atol=1e-8)


@pytest.mark.parametrize("is_terminal_only", [True, False])
def test_one_step_descent_reaches_the_soft_optimum(is_terminal_only):
    # O4, with the critic on path targets. Backwards over the tree: in a last state both stationarities force the
    # residual of every action to 0; then the path residual of the state before is its one-step residual; and so on.
    tree = build_tree(16, is_terminal_only=is_terminal_only)
    weight = random_weight(31, 16)
    logits, value = random_tables(15, 16)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, value)
        return weighted_total(oreo_one_step(v, beta=BETA, alpha=0.0), weight)

    fit(loss, logits, value)
    optimum = solve(tree)
    assert_close(logits.softmax(-1), optimum.logp.exp(), **FITTED)
    assert_close(value, optimum.value, **FITTED)


def full_residual(v: TokenValues) -> Tensor:
    """δ with gradient through V and every log-ratio: the telescoped loss without stop-gradient."""
    return path_residual(v.value, suffix_sum(v.reward) - BETA * suffix_sum(log_ratio(v.logp, v.ref_logp, v.is_action)))


def one_step_residual(v: TokenValues) -> Tensor:
    rho = log_ratio(v.logp, v.ref_logp, v.is_action)
    return path_residual(v.value, v.reward - BETA * rho, at_next_state(v.value, v.is_state))


@pytest.mark.parametrize("residual", [full_residual, one_step_residual])
def test_other_potentials_on_the_same_residual_share_the_optimum(residual):
    # O4: the soft optimum is the only zero of the residual on data with full support, whatever is stopped.
    tree = build_tree(12)
    weight = random_weight(31, 12)
    logits, value = random_tables(15, 12)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, value)
        return (weight[:, None] * torch.where(v.is_state, residual(v).square(), 0.0)).sum()

    fit(loss, logits, value)
    optimum = solve(tree)
    # True gradients tie all states together, so the same number of steps ends between 1e-10 and 1e-7.
    assert_close(logits.softmax(-1), optimum.logp.exp(), rtol=0, atol=1e-6)
    assert_close(value, optimum.value, rtol=0, atol=1e-6)


def mean_residuals(tree: Tree, rows: reference.Rows, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Per (s, a): the share mu(a|s) of the data and the mean residual, rows weighted by weight_b / n_b; by loops."""
    mass, summed = torch.zeros(15, 3, dtype=torch.float64), torch.zeros(15, 3, dtype=torch.float64)
    for b in range(31):
        states = reference.states_of(rows, b)
        for t in states:
            s, a = tree.paths.state[b, t], tree.paths.action[b, t]
            mass[s, a] += weight[b].item() / len(states)
            summed[s, a] += weight[b].item() / len(states) * reference.residual(rows, b, t, beta=BETA)
    return mass / mass.sum(-1, keepdim=True), summed / mass


def test_kl_term_shifts_the_mean_residual_by_its_closed_form():
    # O5: with α > 0 the end point satisfies, at each (s, a),
    #   mean δ = −(α/2β) (π/μ) (log(π/π_ref) − KL)   and   mean over a of δ = 0,
    # so the policy is not the soft optimum and must never be tested against it.
    alpha = 0.1
    tree = build_tree(13)
    weight = random_weight(31, 13)
    logits, value = random_tables(15, 13)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, value)
        return weighted_total(oreo_token(v, beta=BETA, alpha=alpha), weight)

    fit(loss, logits, value)
    logp = logits.log_softmax(-1)
    v = read_tables(tree.paths, logp, tree.ref_logp, value)
    mu, delta = mean_residuals(tree, rows_of(v), weight)
    kl = torch.tensor([reference.exact_kl(p, q) for p, q in zip(logp.numpy(), tree.ref_logp.numpy(), strict=True)])
    log_ratio_table = logp - tree.ref_logp
    assert_close(delta, -alpha / (2 * BETA) * logp.exp() / mu * (log_ratio_table - kl[:, None]), **FITTED)
    assert_close((mu * delta).sum(-1), torch.zeros(15, dtype=torch.float64), **FITTED)
    assert (logp.exp() - solve(tree).logp.exp()).abs().max() > 0.01


def bandit(outcome: Tensor) -> Paths:
    """One state, one row per action."""
    n = len(outcome)
    zeros = torch.zeros(n, 1, dtype=torch.int64)
    return Paths(zeros, torch.arange(n)[:, None], torch.ones(n, 1, dtype=torch.bool), outcome[:, None])


@pytest.mark.parametrize(("beta", "alpha"), [(0.5, 0.1), (0.3, 0.2), (0.5, 0.0)])
def test_on_policy_bandit_settles_at_the_effective_temperature(beta, alpha):
    # O6: rows drawn from the current policy, so weight = sg(π): π = softmax(log π_ref + r / (β + α/2β)).
    outcome = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64)
    ref_logp = torch.tensor([[0.2, -0.3, 0.5]], dtype=torch.float64).log_softmax(-1)
    paths = bandit(outcome)
    logits, value = random_tables(1, 14)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(paths, logits.log_softmax(-1), ref_logp, value)
        return weighted_total(oreo_token(v, beta=beta, alpha=alpha), logits.softmax(-1)[0].detach())

    fit(loss, logits, value)
    temperature = effective_temperature(beta=beta, alpha=alpha)
    assert temperature == pytest.approx(beta + alpha / (2 * beta), abs=1e-15)
    assert_close(logits.softmax(-1), (ref_logp + outcome / temperature).softmax(-1), **FITTED)


@pytest.mark.parametrize(("objective", "n_residuals"), [(oreo_token, 3), (oreo_step, 2), (oreo_response, 1)])
def test_last_action_settles_at_the_temperature_of_its_share_of_residuals(objective, n_residuals):
    # Sequences of three tokens from A = 2; steps begin at tokens 0 and 2. On-policy and in a last state Q = R, so the
    # policy residual, weight 1/n_residuals, against the KL, weight α/3, leaves π = softmax(log π_ref + R / beta_eff)
    # with beta_eff = β + (α/2β) · n_residuals / 3. Earlier states have Q of later penalties and no such closed form.
    beta, alpha = 0.5, 0.3
    prefixes = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
    rows = list(itertools.product(range(2), repeat=3))
    state = torch.tensor([[prefixes.index(row[:t]) for t in range(3)] for row in rows])
    outcome = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(17))
    reward = torch.stack((torch.zeros_like(outcome), torch.zeros_like(outcome), outcome), dim=-1)
    paths = Paths(state, torch.tensor(rows), torch.ones(8, 3, dtype=torch.bool), reward)
    is_step = torch.tensor([True, False, True]).expand(8, 3)
    ref_logp = random_tables(7, 17)[0][:, :2].log_softmax(-1)
    logits, value = random_tables(7, 18)
    logits = logits[:, :2].clone()

    def read(logits: Tensor, value: Tensor) -> TokenValues:
        v = read_tables(paths, logits.log_softmax(-1), ref_logp, value)
        return replace(v, is_state=is_step) if objective is oreo_step else v

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read(logits, value)
        return weighted_total(objective(v, beta=beta, alpha=alpha), v.logp.sum(-1).exp().detach())

    fit(loss, logits, value)
    temperature = beta + alpha / (2 * beta) * n_residuals / 3
    expected = (ref_logp[3:] + outcome.reshape(4, 2) / temperature).softmax(-1)
    assert_close(logits.softmax(-1)[3:], expected, rtol=0, atol=1e-8)
    (logged,) = [term for term in objective(read(logits, value), beta=beta, alpha=alpha) if term.name == "beta_eff"]
    assert logged.value.tolist() == pytest.approx([temperature] * 8, abs=1e-12)


def test_effective_temperature_of_the_paper_setting_is_mostly_alpha():
    # 0.03 + 0.01 / 0.06 = 0.19667 nats: α adds 5.6 times β.
    assert effective_temperature(beta=0.03, alpha=0.01) == pytest.approx(0.196667, abs=1e-6)


def test_kl_term_holds_back_the_action_that_no_row_has_tried():
    # O13 with α > 0, started at the degenerate point (V = 1.5, 0.998 of the mass on the unseen a2). For a2 the row
    # weight is 0, so stationarity leaves α π_2 (ρ_2 − KL) = 0, that is ρ_2 = KL. Under a uniform reference log π_2 is
    # then a mean of log π_0 and log π_1, so π_2 <= max(π_0, π_1) and below 1/2.
    beta = 0.1
    ref_logp = torch.full((1, 3), -math.log(3), dtype=torch.float64)
    paths = bandit(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    logits = torch.tensor([[-25.0 - math.log(3), -5.0 - math.log(3), math.log(0.99775)]], dtype=torch.float64)
    value = torch.tensor([1.5], dtype=torch.float64)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(paths, logits.log_softmax(-1), ref_logp, value)
        return weighted_total(oreo_token(v, beta=beta, alpha=0.01), torch.tensor([0.5, 0.5], dtype=torch.float64))

    assert logits.softmax(-1)[0, 2] > 0.99
    fit(loss, logits, value)
    rho = logits.log_softmax(-1) - ref_logp
    kl = (logits.softmax(-1) * rho).sum()
    assert rho[0, 2].item() == pytest.approx(kl.item(), abs=1e-6)
    assert logits.softmax(-1)[0, 2] < 0.5


def test_stopped_gradient_is_unbiased_under_random_observations_and_off_policy_data():
    # O15: V(s) = β log Σ_a π_ref e^{E_o[V(s')]/β}. Path residuals stay away from 0, since the observation is luck that
    # no policy controls. Eq. 9 still ends at the optimum; without the stop-gradient it does not.
    problem = build_two_turns(15)
    optimum = solve_two_turns(problem)

    def fitted(row_loss) -> tuple[Tensor, Tensor]:
        logits, value = random_tables(7, 15)

        def loss(logits: Tensor, value: Tensor) -> Tensor:
            return row_loss(read_tables(problem.paths, logits.log_softmax(-1), problem.ref_logp, value))

        fit(loss, logits, value)
        return logits.softmax(-1), value

    policy, value = fitted(lambda v: weighted_total(oreo_token(v, beta=BETA, alpha=0.0), problem.weight))
    assert_close(policy, optimum.logp.exp(), **FITTED)
    assert_close(value, optimum.value, **FITTED)
    v = read_tables(problem.paths, policy.log(), problem.ref_logp, value)
    assert full_residual(v)[:, 0].abs().max() > 0.05

    def unstopped(v: TokenValues) -> Tensor:
        return (problem.weight[:, None] * torch.where(v.is_state, full_residual(v).square(), 0.0)).sum()

    biased, _ = fitted(unstopped)
    assert (biased - optimum.logp.exp()).abs().max() > 0.01


@pytest.mark.parametrize("objective", [oreo_token, oreo_one_step])
def test_afterstate_value_is_what_the_turn_is_worth_before_its_observation(objective):
    # Position 1 of the two turns is the observation; as an afterstate it has its own value, one per first action:
    # V(a) = E_o V(a, o) = q(s0, a) of the recursion, the Q of the turn. Policy and other values stay the optimum.
    # The one-step form reads V of the afterstate in place of V(a, o), and ends in the same place.
    problem = build_two_turns(19)
    optimum = solve_two_turns(problem)
    state = problem.paths.state.clone()
    state[:, 1] = 7 + problem.paths.action[:, 0]
    is_state = torch.ones_like(problem.paths.is_action)
    paths = replace(problem.paths, state=state)
    ref_logp = torch.cat((problem.ref_logp, torch.full((3, 3), -math.log(3), dtype=torch.float64)))
    logits, value = random_tables(10, 19)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = replace(read_tables(paths, logits.log_softmax(-1), ref_logp, value), is_state=is_state)
        return weighted_total(objective(v, beta=BETA, alpha=0.0), problem.weight)

    fit(loss, logits, value)
    assert_close(logits.softmax(-1)[:7], optimum.logp.exp(), **FITTED)
    assert_close(value[:7], optimum.value, **FITTED)
    assert_close(value[7:], optimum.q[0], **FITTED)
