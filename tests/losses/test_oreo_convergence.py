"""Where training on full tables ends: the soft optimum without KL, closed-form stationary points with it.

1,600 Adam steps with a cosine to 0 reach 1e-15 on these tables; 1e-10 admits other seeds and libraries, while a biased
objective (each has a test that shows one) misses by more than 1e-2.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import (
    Objective,
    at_next_state,
    log_ratio,
    oreo_one_step,
    oreo_response,
    oreo_token,
    path_residual,
    suffix_sum,
)
from posttrain.schema import TokenValues
from tests.tree_mdp import (
    BETA,
    Tree,
    build_tree,
    build_two_turns,
    fit,
    random_tables,
    random_weight,
    read_tables,
    solve,
    solve_two_turns,
    weighted_total,
)

FITTED = {"rtol": 0, "atol": 1e-10}


def descend(objective: Objective, tree: Tree, weight: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Policy and value tables where joint descent on an objective of OREO without KL ends, from random ones."""
    logits, value = random_tables(15, seed)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, value)
        return weighted_total(objective(v, beta=BETA, alpha=0.0), weight)

    fit(loss, logits, value)
    return logits.softmax(-1), value


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
    policy, value = descend(oreo_token, tree, weight, 10)
    optimum = solve(tree)
    assert_close(policy, optimum.logp.exp(), **FITTED)
    assert_close(value, optimum.value, **FITTED)
    assert (optimum.logp.exp() - tree.ref_logp.exp()).abs().max() > 0.1  # there was something to learn


def test_response_level_descent_reaches_the_soft_optimum_and_every_value():
    # O4. Only first states move the policy; with full support the chain rule still fixes π at every token.
    tree = build_tree(11)
    weight = random_weight(31, 11)
    policy, value = descend(oreo_response, tree, weight, 11)
    optimum = solve(tree)
    # One residual per row ties all its tokens together, so the same number of steps ends near 1e-10.
    assert_close(policy, optimum.logp.exp(), rtol=0, atol=1e-8)
    assert_close(value, optimum.value, rtol=0, atol=1e-8)


@pytest.mark.parametrize("is_terminal_only", [True, False])
def test_one_step_descent_reaches_the_soft_optimum(is_terminal_only):
    # O4, with the critic on path targets. Backwards over the tree: in a last state both stationarities force the
    # residual of every action to 0; then the path residual of the state before is its one-step residual; and so on.
    tree = build_tree(16, is_terminal_only=is_terminal_only)
    weight = random_weight(31, 16)
    policy, value = descend(oreo_one_step, tree, weight, 16)
    optimum = solve(tree)
    assert_close(policy, optimum.logp.exp(), **FITTED)
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


def test_forms_with_a_stopped_gradient_are_unbiased_under_random_observations_and_off_policy_data():
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

    for objective in (oreo_token, oreo_one_step):
        policy, value = fitted(lambda v, f=objective: weighted_total(f(v, beta=BETA, alpha=0.0), problem.weight))
        assert_close(policy, optimum.logp.exp(), **FITTED)
        assert_close(value, optimum.value, **FITTED)
    v = read_tables(problem.paths, policy.log(), problem.ref_logp, value)
    assert full_residual(v)[:, 0].abs().max() > 0.05

    def unstopped(v: TokenValues) -> Tensor:
        return (problem.weight[:, None] * torch.where(v.is_state, full_residual(v).square(), 0.0)).sum()

    biased, _ = fitted(unstopped)
    assert (biased - optimum.logp.exp()).abs().max() > 0.01
    # Eq. 10 moves later actions by the first state's residual, luck included: it shares the bias.
    biased, _ = fitted(lambda v: weighted_total(oreo_response(v, beta=BETA, alpha=0.0), problem.weight))
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
