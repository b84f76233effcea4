"""Votes of whole answers: by hand, against a count over enumeration, and with values as weights."""

from __future__ import annotations

import itertools
from collections import defaultdict

from posttrain.sampling import Sample
from posttrain.schema import FinishReason
from posttrain.search.best_of_n import AnswersParams
from posttrain.search.drive import run_searches
from posttrain.search.vote import majority, votes, weighted_majority
from tests.search.written_tree import EOS, NEWLINE, PROMPT, WHOLE, EveryChoice, TableScorer, ended, table_value


def total_of(completion: tuple[int, ...]) -> str | None:
    """What an answer of the written-out tree says: the sum of its choices; five cannot be read."""
    total = sum(token for token in completion if token not in (NEWLINE, EOS))
    return None if total == 5 else str(total)


def test_an_answer_has_the_weights_of_all_that_say_the_same_and_an_unreadable_one_has_none():
    assert votes(["7", None, "9", "7"], [1.0, 5.0, 2.5, 1.0]) == [2.0, 0.0, 2.5, 2.0]
    assert votes([None, None], [1.0, 1.0]) == [0.0, 0.0]


def test_the_majority_of_all_answers_is_the_commonest_sum_and_asks_for_no_value():
    # Of three choices from {2, 3, 4} the sum 9 comes up in 7 of 27, more often than any other; (2, 3, 4) is its first.
    (tree,) = run_searches(EveryChoice(), None, [majority(PROMPT, AnswersParams(27, WHOLE), total_of)])
    assert tree.completion(tree.best()) == (2, NEWLINE, 3, NEWLINE, 4, EOS)
    assert tree.best().score == 7.0
    assert tree.n_value_calls == 0


def test_the_weighted_majority_is_the_sum_with_the_largest_total_value_over_enumeration():
    (tree,) = run_searches(
        EveryChoice(), TableScorer(), [weighted_majority(PROMPT, AnswersParams(27, WHOLE), total_of)]
    )
    weight = defaultdict(float)
    for a, b, c in itertools.product((2, 3, 4), repeat=3):
        weight[str(a + b + c)] += table_value((*PROMPT, a, NEWLINE, b, NEWLINE, c))
    best = max(weight, key=weight.__getitem__)
    assert total_of(tree.completion(tree.best())) == best
    assert tree.best().score == weight[best]


class Thrice:
    """Of five samples three are (2,), which says 2, one is (3,) and one (4,)."""

    def sample(self, prompts, params, n, *, streams=None):
        return [[ended((choice, EOS)) for choice in (3, 2, 4, 2, 2)[:n]] for _ in prompts]


class Values(TableScorer):
    def __init__(self, of_choice):
        super().__init__()
        self.of_choice = of_choice

    def score(self, sequences):
        self.asked.extend(sequences)
        return [self.of_choice[sequence[-1]] for sequence in sequences]


def test_an_answer_drawn_three_times_is_scored_once_and_has_three_votes():
    scorer = Values({2: 0.25, 3: 0.5, 4: 0.5})
    (tree,) = run_searches(Thrice(), scorer, [weighted_majority(PROMPT, AnswersParams(5, WHOLE), total_of_one)])
    assert len(scorer.asked) == 3
    assert {node.token_ids[0]: node.score for node in tree.nodes[1:]} == {3: 0.5, 2: 0.75, 4: 0.5}
    assert tree.best().token_ids == (2, EOS)


def test_one_answer_of_high_value_outweighs_three_of_low_value():
    (tree,) = run_searches(
        Thrice(), Values({2: 0.25, 3: 0.9, 4: 0.5}), [weighted_majority(PROMPT, AnswersParams(5, WHOLE), total_of_one)]
    )
    assert tree.best().token_ids == (3, EOS)


def test_values_below_zero_do_not_count_against_answers_that_agree():
    # With −0.1 each, three votes for 2 would sum to −0.3, below the one of 3.
    (tree,) = run_searches(
        Thrice(),
        Values({2: 0.2, 3: -0.1, 4: -0.1}),
        [weighted_majority(PROMPT, AnswersParams(5, WHOLE), total_of_one)],
    )
    assert {node.token_ids[0]: round(node.score, 12) for node in tree.nodes[1:]} == {3: 0.0, 2: 0.6, 4: 0.0}


def total_of_one(completion: tuple[int, ...]) -> str | None:
    return str(completion[0])


def test_equally_frequent_answers_go_to_the_first_drawn():
    class TwoPairs:
        def sample(self, prompts, params, n, *, streams=None):
            return [[ended((choice, EOS)) for choice in (4, 3, 3, 4)] for _ in prompts]

    (tree,) = run_searches(TwoPairs(), None, [majority(PROMPT, AnswersParams(4, WHOLE), total_of_one)])
    assert tree.best().token_ids == (4, EOS)


def test_a_cut_answer_votes_and_is_elected_though_another_ended():
    class TwoCut:
        def sample(self, prompts, params, n, *, streams=None):
            cut = Sample((3,), (-1.0,), FinishReason.LENGTH, None)
            return [[ended((2, EOS)), cut, cut] for _ in prompts]

    (tree,) = run_searches(TwoCut(), None, [majority(PROMPT, AnswersParams(3, WHOLE), total_of_one)])
    assert (tree.best().token_ids, tree.best().score) == ((3,), 2.0)
