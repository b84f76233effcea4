"""Every objective of posttrain.losses in one table: what it sees, what its terms move, and where it must rest.

Two files run over the table: tests/losses/test_objective_matrix.py (zero gradient, padding, split, fixed point) and
tests/models/test_packing_objectives.py (packing). An objective that is not in it fails the first.

Where an objective rests is known from elsewhere: the backward recursion of the tree, a loop over its paths, or a
closed form for one decision. All in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from posttrain import losses
from posttrain.losses import Term, total
from posttrain.schema import PairValues, PathScores, RolloutValues, TokenValues
from tests import reference
from tests.tree_mdp import (
    BETA,
    Tree,
    build_tree,
    random_tables,
    random_weight,
    read_scores,
    read_tables,
    rows_of,
    solve,
    weighted_total,
    with_reward,
)

Values = TokenValues | PairValues | RolloutValues


@dataclass(frozen=True)
class FixedPoint:
    """A loss over tables and the tables at which its gradient is known to be 0."""

    loss: Callable[..., Tensor]
    at: tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    function: Callable[..., tuple[Term, ...]]
    settings: dict[str, float]
    moves: dict[str, str]  # each term with a gradient: the one field of the values that it moves
    rests_at: Callable[[], FixedPoint]
    read: Callable[[TokenValues], Values] = field(default=lambda v: v)  # what it sees of a batch of an even size

    def __call__(self, v: Any) -> tuple[Term, ...]:
        return self.function(v, **self.settings)


def halves(v: TokenValues) -> PairValues:
    """Row b of the first half of the rows was preferred to row b of the second."""
    n = len(v.logp) // 2
    sides = (slice(0, n), slice(n, None))
    return PairValues(*(PathScores(v.logp[side], v.ref_logp[side], v.is_action[side]) for side in sides))


def without_reference(v: TokenValues) -> PairValues:
    return losses.without_reference(halves(v))


def rollouts(v: TokenValues) -> RolloutValues:
    """Sampled by a policy a little away from this one, so that some ratios are clipped; advantages of both signs."""
    generator = torch.Generator().manual_seed(7)
    shift, advantage = torch.randn(2, *v.logp.shape, dtype=torch.float64, generator=generator).to(v.logp)
    assert v.kl is not None
    behavior_logp = v.logp.detach() + 0.3 * shift
    return RolloutValues(v.logp, behavior_logp, advantage, v.kl, v.entropy, v.is_action, v.ref_logp)


def at_the_soft_optimum(form: Callable[..., tuple[Term, ...]], *, steps: tuple[int, ...]) -> FixedPoint:
    """π*, V* of the recursion, for any data with full support (O2); α = 0, since a KL term moves the end point (O5).

    `steps` are the positions of the states.
    """
    tree, weight = build_tree(2, is_terminal_only=False), random_weight(31, 2)
    optimum = solve(tree)
    is_step = torch.tensor([t in steps for t in range(tree.paths.state.shape[1])])

    def loss(logits: Tensor, value: Tensor) -> Tensor:
        v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, value)
        return weighted_total(form(replace(v, is_state=v.is_action & is_step), beta=BETA, alpha=0.0), weight)

    return FixedPoint(loss, (optimum.logp, optimum.value))


def at_the_value_of_a_policy() -> FixedPoint:
    """V(s) of any policy: the mean over rows through s, each of weight w_b / n_b, of the gain from s on (Eq. 8)."""
    tree, weight = build_tree(2, is_terminal_only=False), random_weight(31, 2)
    logp = random_tables(15, 3)[0].log_softmax(-1)
    rows = rows_of(read_tables(tree.paths, logp, tree.ref_logp, torch.zeros(15, dtype=torch.float64)))
    mass, summed = torch.zeros(15, dtype=torch.float64), torch.zeros(15, dtype=torch.float64)
    for b in range(31):
        states = reference.states_of(rows, b)
        for t in states:
            share = weight[b] / len(states)
            mass[tree.paths.state[b, t]] += share
            summed[tree.paths.state[b, t]] += share * reference.suffix_gain(rows, b, t, beta=BETA)

    def loss(value: Tensor) -> Tensor:
        v = read_tables(tree.paths, logp, tree.ref_logp, value)
        return weighted_total(losses.critic_only(v, beta=BETA), weight)

    return FixedPoint(loss, (summed / mass,))


def at_the_reference(kl: Callable[..., tuple[Term, ...]]) -> FixedPoint:
    """A KL alone is lowest where the policy is the reference."""
    tree, weight = build_tree(4), random_weight(31, 4)

    def loss(logits: Tensor) -> Tensor:
        v = read_tables(tree.paths, logits.log_softmax(-1), tree.ref_logp, torch.zeros(15, dtype=torch.float64))
        return weighted_total(kl(v, alpha=0.7), weight)

    return FixedPoint(loss, (tree.ref_logp,))


def at_the_sampler(kl: Callable[..., tuple[Term, ...]]) -> FixedPoint:
    """A sampled KL rests, token by token, where the policy is the one it is kept to: here sampler and reference."""
    tree, weight = build_tree(4), random_weight(31, 4)

    def loss(logits: Tensor) -> Tensor:
        scores = read_scores(tree.paths, logits.log_softmax(-1), tree.ref_logp)
        zero = torch.zeros_like(scores.ref_logp)
        v = RolloutValues(scores.logp, scores.ref_logp, zero, zero, zero, scores.is_action, scores.ref_logp)
        return weighted_total(kl(v, alpha=0.7), weight)

    return FixedPoint(loss, (tree.ref_logp,))


def at_the_penalised_optimum(policy_gradient: Callable[..., tuple[Term, ...]]) -> FixedPoint:
    """One decision on own samples: E[R] − α KL(π‖π_ref) is highest at π ∝ π_ref e^{R/α}; the two terms must cancel."""
    alpha = 0.4
    outcome = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64)
    ref_logp = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64).log_softmax(-1)
    best = (ref_logp + outcome / alpha).log_softmax(-1)

    def loss(logits: Tensor) -> Tensor:
        logp = logits.log_softmax(-1)
        kl = (logp.exp() * (logp - ref_logp)).sum().expand(3, 1)
        here = torch.ones(3, 1, dtype=torch.bool)
        v = RolloutValues(logp[:, None], logp[:, None].detach(), outcome[:, None], kl, torch.zeros_like(kl), here)
        return weighted_total(policy_gradient(v, alpha=alpha), logp.exp().detach())

    return FixedPoint(loss, (best,))


SMOOTHING = 0.2
LINKS: dict[Callable[..., tuple[Term, ...]], Callable[[Tensor], Tensor]] = {  # p(i preferred to j) from R_i − R_j
    losses.dpo: torch.sigmoid,  # Bradley-Terry
    losses.dpo_smoothed: lambda d: (torch.sigmoid(d) - SMOOTHING) / (1 - 2 * SMOOTHING),  # before labels were flipped
    losses.ipo: lambda d: 0.5 + d,  # the square pulls margins to p − 1/2
}


def at_the_optimum_of_the_hidden_reward(
    objective: Callable[..., tuple[Term, ...]], *, has_reference: bool = True, **settings: float
) -> FixedPoint:
    """All ordered pairs of sequences, weighted by how often each is preferred: π* of the reward behind it (D5).

    Each loss has a link of its own from differences in reward to probabilities; they lie in [0, 1] because the
    rewards differ by less than 1/2 at most. Without a reference π* is that of one that is constant.
    """
    tree = build_tree(24, is_terminal_only=False)
    spread = tree.paths.reward.sum(-1)
    tree = with_reward(tree, 0.4 * tree.reward / (spread.max() - spread.min()))
    optimum = solve(tree if has_reference else replace(tree, ref_logp=torch.zeros_like(tree.ref_logp)))
    first, second = (torch.tensor(rows) for rows in zip(*itertools.permutations(range(31), 2), strict=True))
    outcome = tree.paths.reward.sum(-1)
    p_preferred = LINKS[objective](outcome[first] - outcome[second])

    def loss(logits: Tensor) -> Tensor:
        pairs = PairValues(*(_scores(tree, logits, rows) for rows in (first, second)))
        terms = objective(pairs if has_reference else losses.without_reference(pairs), beta=BETA, **settings)
        return total([replace(term, value=p_preferred * term.value) for term in terms if term.coef], {"pair": 465})

    return FixedPoint(loss, (optimum.logp,))


def _scores(tree: Tree, logits: Tensor, rows: Tensor) -> PathScores:
    every = read_scores(tree.paths, logits.log_softmax(-1), tree.ref_logp)
    return PathScores(every.logp[rows], every.ref_logp[rows], every.is_action[rows])


def _oreo(form: Callable[..., tuple[Term, ...]], *, steps: tuple[int, ...] = (0, 1, 2, 3)) -> Case:
    moves = {"value": "value", "policy": "logp", "kl_ref": "kl"}
    return Case(form, {"beta": 0.3, "alpha": 0.7}, moves, partial(at_the_soft_optimum, form, steps=steps))


def _preference(objective: Callable[..., tuple[Term, ...]], **settings: float) -> Case:
    rests_at = partial(at_the_optimum_of_the_hidden_reward, objective, **settings)
    return Case(objective, {"beta": 0.3, **settings}, {"preference": "logp"}, rests_at, halves)


def _policy_gradient(objective: Callable[..., tuple[Term, ...]], **clip: float) -> Case:
    rests_at = partial(at_the_penalised_optimum, partial(objective, **clip))
    return Case(objective, {**clip, "alpha": 0.7}, {"policy": "logp", "kl_ref": "kl"}, rests_at, rollouts)


def _sampled_kl(kl: Callable[..., tuple[Term, ...]]) -> Case:
    return Case(kl, {"alpha": 0.7}, {kl.__name__: "logp"}, partial(at_the_sampler, kl), rollouts)


CASES: dict[str, Case] = {
    "oreo_token": _oreo(losses.oreo_token),
    "oreo_step": _oreo(losses.oreo_step, steps=(0, 2)),
    "oreo_response": _oreo(losses.oreo_response),
    "oreo_one_step": _oreo(losses.oreo_one_step),
    "critic_only": Case(losses.critic_only, {"beta": 0.3}, {"value": "value"}, at_the_value_of_a_policy),
    "kl_to_reference": Case(
        losses.kl_to_reference, {"alpha": 0.7}, {"kl_ref": "kl"}, partial(at_the_reference, losses.kl_to_reference)
    ),
    "kl_from_reference": Case(
        losses.kl_from_reference,
        {"alpha": 0.7},
        {"kl_forward": "kl_forward"},
        partial(at_the_reference, losses.kl_from_reference),
    ),
    "dpo": _preference(losses.dpo),
    "dpo_smoothed": _preference(losses.dpo_smoothed, label_smoothing=SMOOTHING),
    "ipo": _preference(losses.ipo),
    "dpo_without_reference": Case(
        losses.dpo,
        {"beta": 0.03},
        {"preference": "logp"},
        partial(at_the_optimum_of_the_hidden_reward, losses.dpo, has_reference=False),
        without_reference,
    ),
    "reinforce": _policy_gradient(losses.reinforce),
    "grpo": _policy_gradient(losses.grpo, clip_low=0.2, clip_high=0.3),
    "grpo_token_mean": _policy_gradient(losses.grpo_token_mean, clip_low=0.2, clip_high=0.3),
    "kl_ref_k3": _sampled_kl(losses.kl_ref_k3),
    "kl_rollout": _sampled_kl(losses.kl_rollout),
}
