"""Where training on full tables ends when alpha > 0: closed-form stationary points, and the temperature they have.

The policy is then not the soft optimum and must never be tested against it. Fits reach 1e-15 or so, as without KL.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import (
    effective_temperature,
    oreo_response,
    oreo_step,
    oreo_token,
)
from posttrain.schema import TokenValues
from tests import reference
from tests.tree_mdp import (
    BETA,
    Paths,
    Tree,
    build_tree,
    fit,
    random_tables,
    random_weight,
    read_tables,
    rows_of,
    solve,
    weighted_total,
)

FITTED = {"rtol": 0, "atol": 1e-10}


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
