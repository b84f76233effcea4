"""Policy gradients over all 27 strings of three tokens from a vocabulary of three, and what Bellman says of them.

Every expectation is a sum over strings, over groups of strings, or over prefixes; nothing is sampled. Float64 sums of
at most 3 * 27^3 numbers: 1e-12.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import (
    group_mean_advantage,
    kl_k3,
    kl_ref_k3,
    kl_rollout,
    leave_one_out_advantage,
    path_residual,
    reinforce,
    scale_by_group_std,
)
from posttrain.schema import RolloutValues

EXACT = {"rtol": 0, "atol": 1e-12}
N_TOKENS, LENGTH = 3, 3
STRINGS = list(itertools.product(range(N_TOKENS), repeat=LENGTH))
PREFIXES = [prefix for n in range(LENGTH) for prefix in itertools.product(range(N_TOKENS), repeat=n)]
ACTION = torch.tensor(STRINGS)  # [27, 3]
STATE = torch.tensor([[PREFIXES.index(y[:t]) for t in range(LENGTH)] for y in STRINGS])  # [27, 3] of 13 prefixes


def table(seed: int) -> Tensor:
    """Logits of a policy, [13, 3]."""
    return torch.randn(len(PREFIXES), N_TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOGITS, REF_LOGITS = table(0), table(1)
REWARD = torch.rand(27, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def logp_of_tokens(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[STATE, ACTION]


def p_strings(logits: Tensor) -> Tensor:
    return logp_of_tokens(logits).sum(-1).exp()


def rollouts(logits: Tensor, rows: Tensor, advantage: Tensor) -> RolloutValues:
    """The strings `rows`, on-policy, each with one advantage."""
    logp = logp_of_tokens(logits)[rows]
    zero = torch.zeros_like(logp.detach())
    is_action = torch.ones_like(zero, dtype=torch.bool)
    return RolloutValues(logp, logp.detach(), advantage[:, None].expand_as(zero), zero, zero, is_action)


def gradient(loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = LOGITS.clone().requires_grad_(True)
    return torch.autograd.grad(loss_of(leaf), leaf)[0]


RETURN_GRADIENT = gradient(lambda logits: (p_strings(logits) * REWARD).sum())


def gradient_over_groups(n_members: int, advantage_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Of E[(1/G) Σ_i loss_i] over all 27^G groups drawn from the policy, each group's weight held fixed."""
    groups = torch.cartesian_prod(*[torch.arange(27)] * n_members).reshape(-1, n_members)  # [27^G, G]
    rows, group = groups.flatten(), torch.arange(len(groups)).repeat_interleave(n_members)
    p_group = p_strings(LOGITS)[groups].prod(-1).repeat_interleave(n_members) / n_members
    advantage = advantage_of(REWARD[rows], group)

    def loss(logits: Tensor) -> Tensor:
        return (p_group[:, None] * reinforce(rollouts(logits, rows, advantage), alpha=0.0)[0].value).sum()

    return gradient(loss)


def test_reinforce_is_the_gradient_of_the_expected_reward():
    assert RETURN_GRADIENT.abs().max() > 0.01
    assert_close(gradient_over_groups(1, lambda reward, group: reward), -RETURN_GRADIENT, **EXACT)


@pytest.mark.parametrize("n_members", [2, 3])
def test_group_mean_gives_the_gradient_times_its_share_of_others(n_members: int):
    # A string's own reward is 1/G of its baseline: (G − 1)/G of the gradient is left.
    expected = -RETURN_GRADIENT * (n_members - 1) / n_members
    assert_close(gradient_over_groups(n_members, group_mean_advantage), expected, **EXACT)


@pytest.mark.parametrize("n_members", [2, 3])
def test_leave_one_out_gives_the_gradient_itself(n_members: int):
    assert_close(gradient_over_groups(n_members, leave_one_out_advantage), -RETURN_GRADIENT, **EXACT)


# Measured by this enumeration: cosine and length beside the true gradient. The deviation is the population's; with the
# sample's, 1/(G − 1), lengths are sqrt((G − 1)/G) of these. They depend on rewards and policy: it is a bias to know
# of, and not a constant.
@pytest.mark.parametrize(("n_members", "cosine", "scale"), [(2, 0.9753, 2.214), (3, 0.9886, 2.909)])
def test_dividing_by_the_deviation_is_biased_in_direction_and_length(n_members: int, cosine: float, scale: float):
    biased = -gradient_over_groups(
        n_members, lambda reward, group: scale_by_group_std(group_mean_advantage(reward, group), group)
    )
    measured = torch.cosine_similarity(biased.flatten(), RETURN_GRADIENT.flatten(), dim=0).item()
    assert measured == pytest.approx(cosine, abs=1e-4)
    assert (biased.norm() / RETURN_GRADIENT.norm()).item() == pytest.approx(scale, abs=1e-3)


def kl_by_prefix(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p‖q) of the next token after each prefix, [13]."""
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def mean_over_visits(by_prefix: Tensor, visitor: Tensor) -> Tensor:
    """Expected mean over the three prefixes of a string that the policy `visitor` writes."""
    return (p_strings(visitor) * by_prefix[STATE].mean(-1)).sum()


def expected_kl_term(term_of: Callable[..., tuple], values: RolloutValues, sampler: Tensor) -> Tensor:
    (term,) = term_of(values, alpha=0.04)
    assert (term.unit, term.coef) == ("sequence", 0.04)
    return (p_strings(sampler)[:, None] * term.value).sum()


def test_k3_to_the_reference_estimates_one_kl_and_descends_the_other():
    def values(logits: Tensor) -> RolloutValues:
        own = rollouts(logits, torch.arange(27), torch.zeros(27, dtype=torch.float64))
        return replace(own, ref_logp=logp_of_tokens(REF_LOGITS))

    estimated = mean_over_visits(kl_by_prefix(LOGITS, REF_LOGITS), LOGITS)
    assert_close(expected_kl_term(kl_ref_k3, values(LOGITS), LOGITS), estimated, **EXACT)
    got = gradient(lambda logits: expected_kl_term(kl_ref_k3, values(logits), LOGITS))
    forward = gradient(lambda logits: mean_over_visits(kl_by_prefix(REF_LOGITS, logits), LOGITS))
    reverse = gradient(lambda logits: mean_over_visits(kl_by_prefix(logits, REF_LOGITS), LOGITS))
    assert_close(got, forward, **EXACT)
    assert (got - reverse).abs().max() > 0.01


def test_k3_to_a_reference_without_its_log_probs_is_refused():
    own = rollouts(LOGITS, torch.arange(27), REWARD)
    with pytest.raises(ValueError, match=r"ref_logp is None, needs log pi_ref\(a_t \| s_t\) \[B, T\]"):
        kl_ref_k3(own, alpha=0.04)


def test_kl_to_the_sampling_policy_is_exactly_nothing_in_the_first_update():
    leaf = LOGITS.clone().requires_grad_(True)
    (term,) = kl_rollout(rollouts(leaf, torch.arange(27), REWARD), alpha=0.04)
    assert torch.count_nonzero(term.value) == 0
    assert torch.count_nonzero(torch.autograd.grad(term.value.sum(), leaf)[0]) == 0


def test_kl_to_the_sampling_policy_is_unbiased_with_its_gradient_in_later_updates():
    sampler = LOGITS + 0.3 * table(3)

    def values(logits: Tensor) -> RolloutValues:
        own = rollouts(logits, torch.arange(27), REWARD)
        return replace(own, behavior_logp=logp_of_tokens(sampler))

    def exact(logits: Tensor) -> Tensor:
        return mean_over_visits(kl_by_prefix(sampler, logits), sampler)

    assert exact(LOGITS) > 0.01
    assert_close(expected_kl_term(kl_rollout, values(LOGITS), sampler), exact(LOGITS), **EXACT)
    got = gradient(lambda logits: expected_kl_term(kl_rollout, values(logits), sampler))
    assert_close(got, gradient(exact), **EXACT)


def test_k3_of_the_inverse_ratio_means_chi_squared_less_the_kl():
    # The printed form, π_behavior/π − log(π_behavior/π) − 1: E[π_behavior/π] − 1 = χ²(π_behavior‖π).
    sampler = LOGITS + 0.3 * table(3)
    p, q = sampler.softmax(-1), LOGITS.softmax(-1)
    chi_squared = (p.square() / q).sum(-1) - 1
    printed = (p_strings(sampler) * kl_k3(logp_of_tokens(LOGITS) - logp_of_tokens(sampler)).mean(-1)).sum()
    assert_close(printed, mean_over_visits(chi_squared - kl_by_prefix(sampler, LOGITS), sampler), **EXACT)


Strings = dict[tuple[int, ...], Tensor]  # value of each prefix and string


def append(prefix: tuple[int, ...], token: int) -> tuple[int, ...]:
    return (*prefix, token)


def rewrite(prefix: tuple[int, ...], token: int) -> tuple[int, ...]:
    """A world in which a token also changes the one before it."""
    changed = () if not prefix else (*prefix[:-1], (prefix[-1] + token) % N_TOKENS)
    return (*changed, token)


def backward_induction(step: Callable, best: Callable[[Tensor, Tensor], Tensor]) -> Strings:
    """V of every prefix from its successors: `best` of the policy's probabilities [3] and the successors' V [3]."""
    value: Strings = dict(zip(STRINGS, REWARD, strict=True))
    for prefix in reversed(PREFIXES):
        successors = torch.stack([value[step(prefix, token)] for token in range(N_TOKENS)])
        value[prefix] = best(LOGITS[PREFIXES.index(prefix)].softmax(-1), successors)
    return value


def follow(step: Callable, choose: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
    """Expected reward in the world `step` of a policy with probabilities [3] after each prefix."""
    reach: Strings = {(): torch.tensor(1.0, dtype=torch.float64)}
    for prefix in PREFIXES:
        for token, p in enumerate(choose(prefix)):
            state = step(prefix, token)
            reach[state] = reach.get(state, torch.tensor(0.0, dtype=torch.float64)) + reach.get(prefix, 0.0) * p
    return torch.stack([reach[y] * r for y, r in zip(STRINGS, REWARD, strict=True) if y in reach]).sum()


def expected_value(p: Tensor, successors: Tensor) -> Tensor:
    return (p * successors).sum()


def policy_after(prefix: tuple[int, ...]) -> Tensor:
    return LOGITS[PREFIXES.index(prefix)].softmax(-1)


def greedy_after(value: Strings) -> Callable[[tuple[int, ...]], Tensor]:
    """Takes the token whose appended prefix is worth most."""
    return lambda prefix: torch.eye(N_TOKENS, dtype=torch.float64)[
        int(torch.stack([value[append(prefix, token)] for token in range(N_TOKENS)]).argmax())
    ]


def test_values_by_backward_induction_are_the_expected_reward_where_tokens_are_appended():
    value = backward_induction(append, expected_value)
    assert_close(value[()], (p_strings(LOGITS) * REWARD).sum(), **EXACT)
    residual = torch.stack(
        [path_residual(value[y[:t]], torch.zeros(()), value[y[: t + 1]]) for y in STRINGS for t in range(LENGTH)]
    )  # zero on average after each prefix, as Bellman has it
    mean = (p_strings(LOGITS)[:, None] * residual.reshape(27, LENGTH)).sum(0)
    assert_close(mean, torch.zeros(LENGTH, dtype=torch.float64), **EXACT)


def test_greedy_backward_induction_reaches_the_best_string_where_tokens_are_appended():
    value = backward_induction(append, lambda p, successors: successors.max())
    assert_close(value[()], REWARD.max(), **EXACT)
    assert_close(follow(append, greedy_after(value)), REWARD.max(), **EXACT)


def test_appending_is_what_bellman_needs_of_tokens_not_their_order():
    # In the rewriting world the same induction is wrong about the policy and misleads the greedy one. It is right
    # again as soon as it steps as that world does: the fault is in the model of the step, and not in autoregression.
    true_return = follow(rewrite, policy_after)
    assert abs(backward_induction(append, expected_value)[()] - true_return) > 0.01
    assert_close(backward_induction(rewrite, expected_value)[()], true_return, **EXACT)
    best = backward_induction(rewrite, lambda p, successors: successors.max())[()]
    misled = follow(rewrite, greedy_after(backward_induction(append, lambda p, successors: successors.max())))
    assert misled < 0.8 * best
