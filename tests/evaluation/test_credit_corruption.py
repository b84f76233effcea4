"""The credits of a policy that was trained on final answers alone find the token that went wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from posttrain.evaluation.credit import AnswerCredits, Networks, TokenCredit, answer_credits
from posttrain.evaluation.statistics import wilson_interval
from tests.evaluation.running_sums import (
    MODULUS,
    N_ACTIONS,
    N_OPENINGS,
    N_TERMS,
    VOCABULARY,
    Answer,
    own_pairs,
    random_terms,
    sample,
    solve,
    train_dpo,
    train_reference,
)
from tests.evaluation.tiny_policy import word_tokenizer

BETA = 0.1
N_ANSWERS = 200
N_SUMS = N_TERMS - 1
CHANCE = 1 / N_ACTIONS


@dataclass(frozen=True)
class Corrupted:
    answer: Answer
    place: int  # of the corrupted token among the actions; 0 is the opening


def corrupted_answers(*, carries_on: bool, seed: int) -> list[Corrupted]:
    """Right answers with one sum replaced by a wrong one; later sums go on from it, or stay those of the answer."""
    rng = random.Random(seed)
    made = []
    for _ in range(N_ANSWERS):
        terms, opening, k = random_terms(rng), rng.randrange(N_OPENINGS), rng.randrange(N_SUMS)
        answer = solve(terms, opening, {k: rng.randrange(1, MODULUS)})
        if not carries_on:
            sums = solve(terms, opening, {}).sums
            answer = Answer(terms, opening, (*sums[:k], answer.sums[k], *sums[k + 1 :]))
        made.append(Corrupted(answer, place=1 + k))
    return made


def credits_of(networks: Networks, corrupted: Sequence[Corrupted]) -> list[AnswerCredits]:
    words = word_tokenizer(VOCABULARY)
    return [
        answer_credits(item.answer.encoded(), networks, words, beta=BETA, where="made", is_rewarded=True)
        for item in corrupted
    ]


def n_lowest_at(
    places: Sequence[int], answers: Sequence[AnswerCredits], number: Callable[[TokenCredit], float]
) -> int:
    """In how many answers the action with the lowest `number` is the one at that answer's place."""
    return sum(
        min(range(N_ACTIONS), key=[number(credit) for credit in answer.credits].__getitem__) == place
        for place, answer in zip(places, answers, strict=True)
    )


def chance_of_at_least(n_hits: int) -> float:
    """P(X >= n_hits) when the place of the lowest credit is drawn evenly from the actions."""
    return sum(
        math.comb(N_ANSWERS, k) * CHANCE**k * (1 - CHANCE) ** (N_ANSWERS - k) for k in range(n_hits, N_ANSWERS + 1)
    )


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda seed: f"seed-{seed}")
def networks(request: pytest.FixtureRequest) -> Networks:
    seed = request.param
    reference = train_reference(n_steps=500, seed=seed)
    pairs = own_pairs(reference, n_problems=1000, seed=100 * (seed + 1))
    return Networks(train_dpo(reference, pairs, n_steps=150, beta=BETA, seed=seed), reference, None)


@pytest.mark.slow
def test_dpo_on_final_answers_makes_the_policy_right_far_more_often(networks):
    rng = random.Random(9)
    problems = [random_terms(rng) for _ in range(500)]
    before, after = (
        sum(answer.is_right() for answer in sample(model, problems, seed=3)) / len(problems)
        for model in (networks.reference, networks.policy)
    )
    # A teacher with slips at 0.15 is right on five sums with 0.85^5 = 0.44, and by two slips that cancel a bit more.
    assert before == pytest.approx(0.45, abs=0.1)
    assert after > before + 0.2


@pytest.mark.slow
def test_corrupted_token_has_the_lowest_credit_far_more_often_than_chance(networks, record_property):
    corrupted = corrupted_answers(carries_on=True, seed=77)
    answers = credits_of(networks, corrupted)
    places = [item.place for item in corrupted]
    n_hits = n_lowest_at(places, answers, lambda credit: credit.implicit)
    n_policy = n_lowest_at(places, answers, lambda credit: credit.logp)
    n_surprises = n_lowest_at(places, answers, lambda credit: credit.ref_logp)
    interval = wilson_interval(n_hits, N_ANSWERS)
    record_property("lowest credit", n_hits / N_ANSWERS)
    print(f"lowest of {N_ANSWERS}: credit {n_hits} {interval}, log pi {n_policy}, log pi_ref {n_surprises}")
    assert chance_of_at_least(n_hits) < 1e-12
    assert interval.low > 0.7
    # The rarest token to the reference is the harmless opening: credit is not surprise.
    assert n_surprises < N_ANSWERS * CHANCE


@pytest.mark.slow
def test_one_replaced_token_leaves_two_wrong_ones_and_either_has_the_lowest_credit(networks):
    # If later sums stay as they were, the sum after the replaced one does not follow from it: two slips, the second
    # of them back to the truth. The last sum has no such successor.
    corrupted = corrupted_answers(carries_on=False, seed=77)
    answers = credits_of(networks, corrupted)
    n_at, n_after = (
        n_lowest_at([item.place + later for item in corrupted], answers, lambda credit: credit.implicit)
        for later in (0, 1)
    )
    print(f"lowest credit at the replaced token {n_at}/{N_ANSWERS}, at the next one {n_after}")
    assert chance_of_at_least(n_at) < 1e-12
    assert n_at + n_after > 0.8 * N_ANSWERS
