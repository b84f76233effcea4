"""OREO at and around the soft optimum of the tree (arXiv 2412.16145 v2); labels O1.. name the identity tested.

Numbers are float64 of order 1 and sums have at most 31 of them, so rounding stays near 1e-15; 1e-12 leaves room for
another order of summation and is far below any real difference (an identity that fails is off by 1e-2 or more).
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from posttrain.losses import (
    log_ratio,
    oreo_token,
    path_residual,
    suffix_sum,
    total,
)
from posttrain.schema import TokenValues
from tests import reference
from tests.tree_mdp import BETA, build_tree, read_tables, rows_of, solve

EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.mark.parametrize("is_terminal_only", [True, False])
def test_backward_recursion_equals_the_sum_over_all_trajectories(is_terminal_only):
    # O1: V*(s0) = β log Σ_y π_ref(y) e^{R(y)/β} and π*(y) = π_ref(y) e^{(R(y) − V*(s0))/β}, y over the 31 sequences.
    tree = build_tree(0, is_terminal_only=is_terminal_only)
    optimum = solve(tree)
    assert tree.paths.state.shape == (31, 4)
    assert len(tree.child) == 15

    def log_prob(table):
        return torch.where(tree.paths.is_action, table[tree.paths.state, tree.paths.action], 0.0).sum(-1)

    log_ref, outcome = log_prob(tree.ref_logp), tree.paths.reward.sum(-1)
    assert_close(log_ref.exp().sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)
    assert_close(optimum.value[0], BETA * torch.logsumexp(log_ref + outcome / BETA, -1), **EXACT)
    assert_close(log_prob(optimum.logp), log_ref + (outcome - optimum.value[0]) / BETA, **EXACT)


@pytest.mark.parametrize("is_terminal_only", [True, False])
def test_residual_is_zero_on_every_state_of_every_path_at_the_optimum(is_terminal_only):
    # O2, Eq. 7. The residual is checked by the library's own pieces and by the loop.
    tree = build_tree(1, is_terminal_only=is_terminal_only)
    optimum = solve(tree)
    v = read_tables(tree.paths, optimum.logp, tree.ref_logp, optimum.value)
    rho = log_ratio(v.logp, v.ref_logp, v.is_action)
    delta = path_residual(v.value, suffix_sum(v.reward) - BETA * suffix_sum(rho))
    assert delta[v.is_state].abs().max() < 1e-12
    rows = rows_of(v)
    by_loop = [reference.residual(rows, b, t, beta=BETA) for b in range(31) for t in reference.states_of(rows, b)]
    assert max(map(abs, by_loop)) < 1e-12


def test_loss_moves_off_zero_when_one_table_entry_leaves_the_optimum():
    # Guards the test above: V(s0) + 0.1 makes δ = 0.1 in the first state of all 31 rows, and only there, so the value
    # term is mean over rows of 0.01 / n_b with n_b the length of the row.
    tree = build_tree(2)
    optimum = solve(tree)
    value = optimum.value.clone()
    value[0] += 0.1
    terms = oreo_token(read_tables(tree.paths, optimum.logp, tree.ref_logp, value), beta=BETA, alpha=0.0)
    lengths = [1] * 1 + [2] * 2 + [3] * 4 + [4] * 24  # EOS after 0, 1, 2 tokens, or any third action at depth 4
    assert terms[0].value.sum().item() == pytest.approx(sum(0.01 / n for n in lengths), abs=1e-12)


def test_policy_gradient_equals_the_score_surrogate_with_detached_residuals():
    # O7: grad of Eq. 9 = grad of Σ_t 2 β sg(δ_t) log π(a_t|s_t) / n_b, with δ from the loop.
    tree = build_tree(3)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(15, 3, dtype=torch.float64, generator=generator)
    value = torch.randn(15, dtype=torch.float64, generator=generator)

    def policy_gradient(loss_of):
        leaf = logits.clone().requires_grad_(True)
        v = read_tables(tree.paths, leaf.log_softmax(-1), tree.ref_logp, value)
        loss_of(v).backward()
        return leaf.grad

    def surrogate(v):
        weight = torch.from_numpy(reference.oreo_token(rows_of(v), beta=BETA).policy_grad)
        return (weight * torch.where(v.is_action, v.logp, 0.0)).sum()

    ours = policy_gradient(lambda v: oreo_token(v, beta=BETA, alpha=0.0)[1].value.sum())
    assert ours.abs().max() > 0.1
    assert_close(ours, policy_gradient(surrogate), **EXACT)


def test_policy_gradient_is_reinforce_with_baseline_at_the_reference():
    # At π = π_ref, ρ = 0 and δ_t = V − R; with V = 0 the gradient is −2β R ∇ log π / n_b: descending it raises R.
    tree = build_tree(4)
    value = torch.zeros(15, dtype=torch.float64)
    logits = tree.ref_logp.clone().requires_grad_(True)
    v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, value)
    oreo_token(v, beta=BETA, alpha=0.0)[1].value.sum().backward()
    leaf = tree.ref_logp.clone().requires_grad_(True)
    n_states = tree.paths.is_action.sum(-1, keepdim=True)
    logp = torch.where(tree.paths.is_action, leaf.log_softmax(-1)[tree.paths.state, tree.paths.action], 0.0)
    (-2 * BETA * tree.paths.reward.sum(-1, keepdim=True) * logp / n_states).sum().backward()
    assert_close(logits.grad, leaf.grad, **EXACT)


def test_suffix_with_gradient_everywhere_weights_tokens_by_cumulative_residuals():
    # O7, second half: why Eq. 9 stops the gradient. Built from the library's pieces without the stop.
    tree = build_tree(5)
    generator = torch.Generator().manual_seed(5)
    logp = -torch.rand(31, 4, dtype=torch.float64, generator=generator)
    v = read_tables(tree.paths, tree.ref_logp, tree.ref_logp, torch.ones(15, dtype=torch.float64))
    v = replace(v, logp=logp.requires_grad_(True))
    rho = log_ratio(v.logp, v.ref_logp, v.is_action)
    delta = path_residual(v.value, suffix_sum(v.reward) - BETA * suffix_sum(rho))
    n_states = v.is_state.sum(-1, keepdim=True)
    torch.where(v.is_state, delta.square() / n_states, 0.0).sum().backward()
    expected = torch.from_numpy(reference.cumulative_policy_grad(rows_of(v), beta=BETA))
    assert_close(logp.grad, expected, **EXACT)
    stopped = torch.from_numpy(reference.oreo_token(rows_of(v), beta=BETA).policy_grad)
    assert (expected - stopped).abs().max() > 0.1


def test_value_minimiser_at_the_reference_is_the_length_weighted_mean_of_outcomes():
    # O9: at π = π_ref the critic regresses on R; row b counts 1/n_b in each of its states. L_V is convex in V, so a
    # zero gradient at that mean makes it the minimiser. The plain mean differs: a bias towards short rows.
    tree = build_tree(6)
    weighted, plain = torch.zeros(15, dtype=torch.float64), torch.zeros(15, dtype=torch.float64)
    for s in range(15):
        rows = [n for n in range(31) if s in dict(walk(tree, n))]
        through = [(tree.paths.reward[n].sum().item(), tree.paths.is_action[n].sum().item()) for n in rows]
        weighted[s] = sum(r / n for r, n in through) / sum(1 / n for _, n in through)
        plain[s] = sum(r for r, _ in through) / len(through)
    value = weighted.requires_grad_(True)
    v = read_tables(tree.paths, tree.ref_logp, tree.ref_logp, value)
    oreo_token(v, beta=BETA, alpha=0.0)[0].value.sum().backward()
    assert value.grad.abs().max() < 1e-12
    assert (weighted - plain).abs().max() > 0.01


def walk(tree, n: int) -> list[tuple[int, int]]:
    """(state, action) pairs of row n, padding left out."""
    columns = (x[n].tolist() for x in (tree.paths.state, tree.paths.action, tree.paths.is_action))
    return [(state, action) for state, action, is_action in zip(*columns, strict=True) if is_action]


def test_value_difference_equals_the_summed_log_ratio_between_two_states():
    # O10: with a terminal reward only, V*(s_j) − V*(s_i) = β Σ_{i<=t<j} ρ*_t: explicit and implicit values agree.
    tree = build_tree(7)
    optimum = solve(tree)
    rho = optimum.logp - tree.ref_logp
    n_compared = 0
    for n in range(31):
        steps = walk(tree, n)
        for i, j in itertools.combinations(range(len(steps)), 2):
            implicit = BETA * sum(rho[s, a].item() for s, a in steps[i:j])
            explicit = (optimum.value[steps[j][0]] - optimum.value[steps[i][0]]).item()
            assert implicit == pytest.approx(explicit, abs=1e-12)
            n_compared += 1
    assert n_compared == 2 * 1 + 4 * 3 + 24 * 6  # pairs of states on rows with 2, 3 and 4 of them


def test_unseen_action_can_take_all_mass_at_zero_loss_without_kl():
    # O13: uniform reference over 3 actions, data hold only a0 (R = −1) and a1 (R = +1), β = 0.1. Every V from
    # β log((e^−10 + e^10)/3) = 0.8901 up has a policy with zero loss: π(a_i) = e^{(R_i − V)/β}/3.
    # At V = 1.5 that leaves 1 − (e^−25 + e^−5)/3 = 0.99775 to a2, which no row has ever tried.
    beta, v0 = 0.1, 1.5
    outcome = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    log_seen = (outcome - v0) / beta - math.log(3)
    assert (1 - log_seen.exp().sum()).item() == pytest.approx(0.99775, abs=1e-5)
    zero, is_here = torch.zeros_like(outcome), torch.ones_like(outcome, dtype=torch.bool)
    v = TokenValues(
        logp=log_seen,
        ref_logp=zero - math.log(3),
        kl=zero,
        entropy=zero,
        value=zero + v0,
        reward=outcome,
        is_action=is_here,
        is_state=is_here,
    )
    assert total(oreo_token(v, beta=beta, alpha=0.0), {"sequence": 2}) < 1e-24
