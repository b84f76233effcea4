"""A language model as a Q-function (arXiv 2404.12358 v2), on the tree; labels D1.. name the identity tested.

Ground truth is the backward recursion, enumeration of the 31 trajectories, or brute-force search. Float64 sums of at
most 31 numbers of order 1: 1e-12 leaves room for another order of summation. Rewards are continuous, so nothing ties.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import (
    dpo,
    implicit_advantage,
    implicit_return,
    implicit_reward,
    oreo_response,
    proxy_logp,
    q_excluding_reference,
    q_including_reference,
    soft_value,
)
from posttrain.schema import PairValues, PathScores
from tests import reference
from tests.tree_mdp import (
    BETA,
    Tree,
    build_tree,
    fit,
    next_value,
    read_scores,
    read_tables,
    solve,
    weighted_total,
    with_reward,
)

EXACT = {"rtol": 0, "atol": 1e-12}
# Quasi-Newton steps stop where the loss no longer changes in float64; being flat to second order, that leaves 1e-7.
FITTED = {"rtol": 0, "atol": 2e-6}
EVERY = torch.ones(15, 3, dtype=torch.bool)  # all states and actions


def credit_table(tree: Tree, logp: Tensor) -> Tensor:
    """The implicit advantage of every state and action."""
    return implicit_advantage(logp, tree.ref_logp, EVERY, beta=BETA)


def returns(tree: Tree) -> Tensor:
    return tree.paths.reward.sum(-1)


def log_odds(tree: Tree) -> Tensor:
    """[31, 31] R_i − R_j: the Bradley-Terry log-odds that sequence i is preferred to j (Eq. 1)."""
    return returns(tree)[:, None] - returns(tree)[None, :]


@pytest.mark.parametrize("is_terminal_only", [True, False])
def test_log_ratio_of_the_optimum_is_its_advantage_at_every_state_and_action(is_terminal_only):
    # D1, Eq. 10: β log π*/π_ref = r + V(s') − V(s) = q − V.
    tree = build_tree(20, is_terminal_only=is_terminal_only)
    optimum = solve(tree)
    shaped = tree.reward + next_value(tree, optimum.value) - optimum.value[:, None]
    assert_close(credit_table(tree, optimum.logp), shaped, **EXACT)
    assert_close(credit_table(tree, optimum.logp), optimum.q - optimum.value[:, None], **EXACT)


def test_implicit_return_of_a_sequence_is_its_reward_above_the_value_of_the_prompt():
    # D2, Eq. 8, all 31 sequences.
    tree = build_tree(21, is_terminal_only=False)
    optimum = solve(tree)
    h = implicit_return(read_scores(tree.paths, optimum.logp, tree.ref_logp), beta=BETA)
    assert_close(h, returns(tree) - optimum.value[0], **EXACT)


def test_problem_with_the_implicit_reward_has_value_zero_and_the_same_policy():
    # D3: the advantage is a reward whose shaping is used up.
    tree = build_tree(22)
    optimum = solve(tree)
    again = solve(with_reward(tree, credit_table(tree, optimum.logp)))
    assert_close(again.value, torch.zeros_like(again.value), **EXACT)
    assert_close(again.logp, optimum.logp, **EXACT)


def test_shaping_keeps_policy_and_preferences_and_shifts_the_value():
    # D4, Def. 1: r + Φ(s') − Φ(s), Φ = 0 at the end. V falls by Φ, all returns by Φ(s0); log-odds stay.
    tree = build_tree(23, is_terminal_only=False)
    potential = torch.randn(15, dtype=torch.float64, generator=torch.Generator().manual_seed(23))
    shaped = with_reward(tree, tree.reward + next_value(tree, potential) - potential[:, None])
    before, after = solve(tree), solve(shaped)
    assert_close(after.logp, before.logp, **EXACT)
    assert_close(after.value, before.value - potential, **EXACT)
    assert_close(returns(shaped), returns(tree) - potential[0], **EXACT)
    assert_close(log_odds(shaped), log_odds(tree), **EXACT)
    assert_close(credit_table(shaped, after.logp), credit_table(tree, before.logp), **EXACT)


def test_population_dpo_recovers_the_soft_optimum_of_the_hidden_reward():
    # D5: all 930 ordered pairs, weighted by the Bradley-Terry probability of that order. The loss never sees a reward.
    tree = build_tree(24, is_terminal_only=False)
    logits = fit_dpo(tree)
    optimum = solve(tree)
    assert_close(logits.softmax(-1), optimum.logp.exp(), **FITTED)
    h = implicit_return(read_scores(tree.paths, logits.log_softmax(-1), tree.ref_logp), beta=BETA)
    assert_close(h, returns(tree) - optimum.value[0], **FITTED)
    assert (optimum.logp.exp() - tree.ref_logp.exp()).abs().max() > 0.1


def test_response_level_oreo_and_dpo_end_at_one_policy_and_oreo_knows_the_value_too():
    # D12: one from rewards, the other from preferences between them. DPO's policy is the same under any V(s0).
    tree = build_tree(33)
    by_dpo = fit_dpo(tree)
    logits, value = torch.zeros(15, 3, dtype=torch.float64), torch.zeros(15, dtype=torch.float64)

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, value)
        return weighted_total(oreo_response(v, beta=BETA, alpha=0.0), torch.full((31,), 1 / 31, dtype=torch.float64))

    fit(loss, logits, value)
    assert_close(by_dpo.softmax(-1), logits.softmax(-1), **FITTED)
    assert_close(value[0], solve(tree).value[0], **FITTED)
    higher = with_reward(tree, torch.where(next_value(tree, torch.ones(15)) == 0, tree.reward + 1.0, tree.reward))
    assert_close(log_odds(higher), log_odds(tree), **EXACT)  # all that DPO sees
    assert_close(solve(higher).value[0], solve(tree).value[0] + 1.0, **EXACT)


def fit_dpo(tree: Tree) -> Tensor:
    """Logits that minimise the population loss over all ordered pairs."""
    first, second = (torch.tensor(rows) for rows in zip(*itertools.permutations(range(31), 2), strict=True))
    p_preferred = torch.sigmoid(returns(tree)[first] - returns(tree)[second])
    logits = torch.zeros(15, 3, dtype=torch.float64, requires_grad=True)

    def scores(rows: Tensor) -> PathScores:
        every = read_scores(tree.paths, logits.log_softmax(-1), tree.ref_logp)
        return PathScores(every.logp[rows], every.ref_logp[rows], every.is_action[rows])

    def loss() -> Tensor:
        return (p_preferred * dpo(PairValues(scores(first), scores(second)), beta=BETA)[0].value).sum() / 930

    minimise(loss, logits)
    return logits.detach()


def minimise(loss: Callable[[], Tensor], leaf: Tensor) -> None:
    optimizer = torch.optim.LBFGS(
        [leaf],
        max_iter=400,
        tolerance_grad=1e-13,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


Walk = tuple[tuple[int, int], ...]  # (state, action) pairs from the root


def end_of(tree: Tree, walk: Walk) -> int | None:
    return tree.child[walk[-1][0]][walk[-1][1]] if walk else 0


def beams(tree: Tree, width: int, gain: Tensor, value: Tensor | None) -> list[list[Walk]]:
    """Brute force: the best partial walks after each depth by Σ gain[s, a] + V(end); finished ones stay in."""
    beam: list[Walk] = [()]
    history = []
    for _ in range(4):
        grown: list[Walk] = []
        for walk in beam:
            state = end_of(tree, walk)
            grown += [walk] if state is None else [(*walk, (state, a)) for a in range(3)]
        beam = sorted(grown, key=lambda walk: -walk_score(tree, walk, gain, value))[:width]
        history.append(beam)
    return history


def walk_score(tree: Tree, walk: Walk, gain: Tensor, value: Tensor | None) -> float:
    state = end_of(tree, walk)
    ahead = 0.0 if value is None or state is None else value[state].item()
    return sum(gain[s, a].item() for s, a in walk) + ahead


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [25, 26])
def test_likelihood_search_is_search_for_the_penalised_return(width, seed):
    # D6, Eqs. 12 and 13: Σ β log π* = Σ (r + β log π_ref) + V(s') − V(s0): the same beams, scores apart by V(s0).
    tree = build_tree(seed, is_terminal_only=False)
    optimum = solve(tree)
    likelihood, penalised = BETA * optimum.logp, tree.reward + BETA * tree.ref_logp
    by_policy = beams(tree, width, likelihood, None)
    assert by_policy == beams(tree, width, penalised, optimum.value)
    for walk in itertools.chain(*by_policy):
        apart = walk_score(tree, walk, penalised, optimum.value) - walk_score(tree, walk, likelihood, None)
        assert apart == pytest.approx(optimum.value[0].item(), abs=1e-12)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [25, 26])
def test_log_ratio_search_is_search_by_reward_and_value(width, seed):
    # D7: Σ β log π*/π_ref = Σ r + V(s') − V(s0), with the implicit advantage of the library as the gain.
    tree = build_tree(seed, is_terminal_only=False)
    optimum = solve(tree)
    assert beams(tree, width, credit_table(tree, optimum.logp), None) == beams(tree, width, tree.reward, optimum.value)


def test_likelihood_search_and_log_ratio_search_find_different_beams():
    # D8: a guard against mixing up the two above.
    n_different = 0
    for seed in range(5):
        tree = build_tree(seed, is_terminal_only=False)
        optimum = solve(tree)
        n_different += beams(tree, 3, optimum.logp, None) != beams(tree, 3, credit_table(tree, optimum.logp), None)
    assert n_different >= 4


def test_implicit_rewards_fall_by_the_forward_kl_on_samples_of_the_reference():
    # D9, Eq. 16: E_{a~ref}[β log π/π_ref] = −β KL(π_ref‖π) in every state, and over sequences with the KL summed over
    # the states that the reference visits. Any policy will do.
    tree = build_tree(27)
    logp = torch.randn(15, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(127)).log_softmax(-1)
    p_ref = tree.ref_logp.exp()
    kl = torch.tensor([reference.exact_kl(p, q) for p, q in zip(tree.ref_logp.numpy(), logp.numpy(), strict=True)])
    assert_close((p_ref * credit_table(tree, logp)).sum(-1), -BETA * kl, **EXACT)
    scores = read_scores(tree.paths, logp, tree.ref_logp)
    p_sequence = torch.where(scores.is_action, scores.ref_logp, 0.0).sum(-1).exp()
    visited = torch.where(scores.is_action, kl[tree.paths.state], 0.0).sum(-1)
    mean_return = (p_sequence * implicit_return(scores, beta=BETA)).sum()
    assert_close(mean_return, -BETA * (p_sequence * visited).sum(), **EXACT)
    assert mean_return < -0.1


@pytest.mark.parametrize("shift_seed", [None, 28])
def test_logits_give_q_and_v_up_to_a_shift_and_the_reward_up_to_shaping(shift_seed):
    # D11, Lemma 1. Logits log π* + V/β, what the recursion calls Q'/β, give r back exactly. Shifted by c(s) they are
    # the same policy, Q and V rise by β c(s), and r is shaped by the potential −β c.
    tree = build_tree(28, is_terminal_only=False)
    optimum = solve(tree)
    shift = torch.zeros(15, dtype=torch.float64)
    if shift_seed is not None:
        shift = torch.randn(15, dtype=torch.float64, generator=torch.Generator().manual_seed(shift_seed))
    logits = optimum.logp + (optimum.value / BETA + shift)[:, None]
    assert_close(logits.log_softmax(-1), optimum.logp, **EXACT)
    value, q = soft_value(logits, beta=BETA), q_excluding_reference(logits, tree.ref_logp, beta=BETA)
    assert_close(value, optimum.value + BETA * shift, **EXACT)
    assert_close(q, optimum.q + BETA * shift[:, None], **EXACT)
    assert_close(q_including_reference(logits, beta=BETA), q + BETA * tree.ref_logp, **EXACT)
    assert_close(q - value[:, None], credit_table(tree, optimum.logp), **EXACT)  # the advantage does not move
    reward = implicit_reward(q, next_value(tree, value))
    assert_close(reward, tree.reward + BETA * (shift[:, None] - next_value(tree, shift)), **EXACT)
    assert_close(solve(with_reward(tree, reward)).logp, optimum.logp, **EXACT)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_proxy_policy_is_the_reference_tilted_by_the_advantage(exponent):
    # D13: on the reference itself, softmax(log π_ref + k q/β), since V(s) cancels; k = 1 gives π* back.
    tree = build_tree(29, is_terminal_only=False)
    optimum = solve(tree)
    tuned = proxy_logp(tree.ref_logp, optimum.logp, tree.ref_logp, exponent=exponent)
    by_hand = [
        reference.log_softmax((log_ref + exponent * q / BETA).tolist())
        for log_ref, q in zip(tree.ref_logp, optimum.q, strict=True)
    ]
    assert_close(tuned, torch.from_numpy(np.array(by_hand)), **EXACT)
    if exponent == 1.0:
        assert_close(tuned, optimum.logp, **EXACT)


def test_proxy_policy_on_another_base_multiplies_the_probabilities():
    base, tuned, ref = (
        torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
        for seed in (30, 31, 32)
    )
    by_hand = base.exp() * (tuned.exp() / ref.exp()).sqrt()
    assert_close(proxy_logp(base, tuned, ref, exponent=0.5).exp(), by_hand / by_hand.sum(-1, keepdim=True), **EXACT)
