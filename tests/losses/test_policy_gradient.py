"""Policy gradients against the gradient of the expected return, which the tree gives by enumeration.

Every sequence y counts π(y), held fixed, as if it had been sampled. Float64 sums of at most 961 pairs: 1e-12.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import (
    group_mean_advantage,
    grpo,
    grpo_token_mean,
    leave_one_out_advantage,
    reinforce,
    scale_by_group_std,
    suffix_sum,
)
from posttrain.schema import RolloutValues
from tests.tree_mdp import Tree, build_tree

EXACT = {"rtol": 0, "atol": 1e-12}
NO_CLIP = {"clip_low": 1.0, "clip_high": 1e9}  # ratios are never negative
TREE = build_tree(50, is_terminal_only=False)
LOGITS = torch.randn(15, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(51))
OUTCOME = TREE.paths.reward.sum(-1)  # [31]


def rollouts(tree: Tree, logits: Tensor, advantage: Tensor) -> RolloutValues:
    """All sequences, on-policy; `advantage` [31] or [31, T]."""
    logp = logits.log_softmax(-1)[tree.paths.state, tree.paths.action]
    advantage = advantage[:, None] if advantage.ndim == 1 else advantage
    zero = torch.zeros_like(logp.detach())
    return RolloutValues(logp, logp.detach(), advantage.expand_as(zero), zero, zero, tree.paths.is_action)


def p_sequence(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)[TREE.paths.state, TREE.paths.action]
    return torch.where(TREE.paths.is_action, logp, 0.0).sum(-1).exp()


def return_gradient(outcome: Tensor) -> Tensor:
    """∇ Σ_y π(y) R(y)."""
    leaf = LOGITS.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad((p_sequence(leaf) * outcome).sum(), leaf)
    return grad


def expected_gradient(objective, advantage: Tensor) -> Tensor:
    """Of the policy term, over sequences drawn from the policy."""
    leaf = LOGITS.clone().requires_grad_(True)
    term = objective(rollouts(TREE, leaf, advantage))[0]
    (grad,) = torch.autograd.grad((p_sequence(LOGITS)[:, None] * term.value).sum(), leaf)
    return grad


def reinforce_terms(v: RolloutValues):
    return reinforce(v, alpha=0.0)


@pytest.mark.parametrize("baseline", [0.0, 3.0])
def test_reinforce_is_the_gradient_of_the_expected_return_whatever_the_baseline(baseline):
    expected = return_gradient(OUTCOME)
    assert expected.abs().max() > 0.01
    assert_close(expected_gradient(reinforce_terms, OUTCOME - baseline), -expected, **EXACT)


def test_reinforce_with_the_rewards_still_to_come_is_the_same_gradient():
    # Rewards before an action do not depend on it.
    assert_close(expected_gradient(reinforce_terms, suffix_sum(TREE.paths.reward)), -return_gradient(OUTCOME), **EXACT)


def test_expected_gradient_is_zero_when_every_sequence_earns_the_same():
    # The fixed point: each policy is best.
    grad = expected_gradient(reinforce_terms, torch.ones(31, dtype=torch.float64))
    assert_close(grad, torch.zeros_like(grad), **EXACT)


def gradient_over_groups_of_two(advantage_of) -> Tensor:
    """Expected over all 961 ordered pairs, drawn independently; each pair the mean of its two answers."""
    first, second = (torch.arange(31).repeat_interleave(31), torch.arange(31).repeat(31))
    rows = torch.stack((first, second), dim=-1).flatten()
    group = torch.arange(961).repeat_interleave(2)
    advantage = advantage_of(OUTCOME[rows], group)
    p_pair = (p_sequence(LOGITS)[first] * p_sequence(LOGITS)[second]).repeat_interleave(2) / 2
    leaf = LOGITS.clone().requires_grad_(True)
    v = rollouts(TREE, leaf, torch.zeros(31, dtype=torch.float64))
    zero = torch.zeros(len(rows), 4, dtype=torch.float64)
    v = RolloutValues(
        v.logp[rows], v.behavior_logp[rows], advantage[:, None].expand_as(zero), zero, zero, v.is_action[rows]
    )
    (grad,) = torch.autograd.grad((p_pair[:, None] * reinforce(v, alpha=0.0)[0].value).sum(), leaf)
    return grad


def test_leave_one_out_baseline_leaves_the_gradient_unbiased():
    assert_close(gradient_over_groups_of_two(leave_one_out_advantage), -return_gradient(OUTCOME), **EXACT)


def test_group_mean_baseline_shrinks_the_gradient_by_the_answers_own_share():
    # (G − 1)/G = 1/2 for G = 2.
    assert_close(gradient_over_groups_of_two(group_mean_advantage), -return_gradient(OUTCOME) / 2, **EXACT)


def test_scaling_by_the_group_deviation_is_the_gradient_of_winning_instead():
    # In a group of two, A = ±1: the sign of R_i − R_j. So the gradient is that of the chance to beat an answer of the
    # policy as it is: R is replaced by Σ_j π(j) sign(R_i − R_j).
    def scaled(reward: Tensor, group: Tensor) -> Tensor:
        return scale_by_group_std(group_mean_advantage(reward, group), group)

    wins = (OUTCOME[:, None] - OUTCOME[None, :]).sign() @ p_sequence(LOGITS)
    assert_close(gradient_over_groups_of_two(scaled), -return_gradient(wins), **EXACT)
    cosine = torch.cosine_similarity(return_gradient(wins).flatten(), return_gradient(OUTCOME).flatten(), dim=0)
    assert cosine < 0.99


def test_token_mean_is_the_return_gradient_over_the_mean_length_and_sequence_mean_is_not():
    mean_length = (p_sequence(LOGITS) * TREE.paths.is_action.sum(-1)).sum()
    by_token = expected_gradient(lambda v: grpo_token_mean(v, **NO_CLIP, alpha=0.0), OUTCOME) / mean_length
    assert_close(by_token, -return_gradient(OUTCOME) / mean_length, **EXACT)
    by_sequence = expected_gradient(lambda v: grpo(v, **NO_CLIP, alpha=0.0), OUTCOME)
    cosine = torch.cosine_similarity(by_sequence.flatten(), -return_gradient(OUTCOME).flatten(), dim=0)
    assert cosine < 0.999  # short sequences count for more


def test_unclipped_ratio_corrects_for_another_behaviour_in_a_single_decision():
    # One state, actions drawn from μ: Σ_a μ(a) (π/μ)(a) A(a) = Σ_a π(a) A(a).
    logits = LOGITS[0].clone().requires_grad_(True)
    behavior = LOGITS[1].log_softmax(-1)
    outcome = OUTCOME[:3]
    zero = torch.zeros(3, 1, dtype=torch.float64)
    v = RolloutValues(
        logits.log_softmax(-1)[:, None],
        behavior[:, None],
        outcome[:, None],
        zero,
        zero,
        torch.ones(3, 1, dtype=torch.bool),
    )
    gain = -(behavior.exp()[:, None] * grpo(v, **NO_CLIP, alpha=0.0)[0].value).sum()
    expected = (logits.softmax(-1) * outcome).sum()
    assert_close(gain, expected, **EXACT)
    assert_close(torch.autograd.grad(gain, logits)[0], torch.autograd.grad(expected, logits)[0], **EXACT)


@pytest.mark.parametrize(("objective", "share"), [(grpo, 1 / 4), (grpo_token_mean, 1.0)])
def test_clip_stops_gains_past_the_bound_and_never_corrections(objective, share):
    # Ratios and advantages of four tokens; clip to [0.8, 1.3]. −min(w A, clip(w) A) and its slope −w A in log π:
    #   w 1.5, A +1: −min(1.5, 1.3) = −1.3, stopped       w 0.5, A +1: −min(0.5, 0.8) = −0.5, slope −0.5
    #   w 1.5, A −1: −min(−1.5, −1.3) = 1.5, slope 1.5    w 0.5, A −1: −min(−0.5, −0.8) = 0.8, stopped
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    logp = (ratio.log() - 1.0).requires_grad_(True)
    zero = torch.zeros_like(ratio)
    v = RolloutValues(logp, zero - 1.0, advantage, zero, zero, torch.ones(1, 4, dtype=torch.bool))
    terms = {term.name: term for term in objective(v, clip_low=0.2, clip_high=0.3, alpha=0.0)}
    loss = terms["policy"].value
    assert (loss / share).tolist() == [pytest.approx([-1.3, -0.5, 1.5, 0.8], abs=1e-12)]
    (grad,) = torch.autograd.grad(loss.sum(), logp)
    assert (grad / share).tolist() == [pytest.approx([0.0, -0.5, 1.5, 0.0], abs=1e-12)]
    assert (terms["policy/clip_fraction"].value / share).tolist() == [[1.0, 0.0, 0.0, 1.0]]


OBJECTIVES = pytest.mark.parametrize(
    ("objective", "clip"),
    [
        (reinforce, {}),
        (grpo, {"clip_low": 0.2, "clip_high": 0.2}),
        (grpo_token_mean, {"clip_low": 0.2, "clip_high": 0.2}),
    ],
)


@OBJECTIVES
def test_policy_gradient_is_zero_when_advantages_are_zero(objective, clip):
    leaf = LOGITS.clone().requires_grad_(True)
    terms = objective(rollouts(TREE, leaf, torch.zeros(31, dtype=torch.float64)), **clip, alpha=0.0)
    (grad,) = torch.autograd.grad(terms[0].value.sum(), leaf)
    assert torch.count_nonzero(grad) == 0


@OBJECTIVES
def test_kl_term_is_alpha_times_the_row_mean_over_actions(objective, clip):
    # Row n has n_actions states with KL 2: a mean of 2 for each of the 31 rows.
    v = rollouts(TREE, LOGITS, OUTCOME)
    v = replace(v, kl=torch.where(v.is_action, 2.0, 100.0).double())
    (term,) = [term for term in objective(v, **clip, alpha=0.3) if term.name == "kl_ref"]
    assert_close(term.value.sum(-1), torch.full((31,), 2.0, dtype=torch.float64), **EXACT)
    assert (term.unit, term.coef) == ("sequence", 0.3)
