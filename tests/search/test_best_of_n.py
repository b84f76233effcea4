"""Whole answers and the choice among them: against enumeration, the engine's own samples, and what they may cost."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from posttrain.sampling import Sample
from posttrain.schema import FinishReason
from posttrain.search.best_of_n import AnswersParams, best_of_n, sample_one
from posttrain.search.budget import Budget
from posttrain.search.drive import run_searches
from posttrain.search.ranking import Ranking
from posttrain.search.tree import NodeState
from tests.search.written_tree import EOS, NEWLINE, PROMPT, STEP, WHOLE, EveryChoice, TableScorer, ended, table_value


class Spelling:
    """Sample i of a stream: i % 4 + 1 tokens that spell the stream, then EOS; every fifth runs out of tokens."""

    def __init__(self):
        self.calls = []

    def sample(self, prompts, params, n, *, streams=None):
        self.calls.append((n, params.max_new_tokens))
        return [[self._nth(stream, i, params.max_new_tokens) for i in range(n)] for stream in streams]

    def _nth(self, stream, i, n_tokens):
        whole = (*(10 + stream % 1000 + k for k in range(i % 4 + 1)), EOS)
        if i % 5 == 4 or len(whole) > n_tokens:
            tokens = (*whole[:-1], *[9] * n_tokens)[:n_tokens]
            return Sample(tokens, (-1.0,) * len(tokens), FinishReason.LENGTH, None)
        return Sample(whole, (-1.0,) * len(whole), FinishReason.STOP, None)


def test_the_best_of_all_answers_is_that_of_enumeration_with_v_read_before_eos():
    scorer = TableScorer()
    (tree,) = run_searches(EveryChoice(), scorer, [best_of_n(PROMPT, AnswersParams(27, WHOLE))])
    answers = [(a, NEWLINE, b, NEWLINE, c, EOS) for a, b, c in itertools.product((2, 3, 4), repeat=3)]
    assert tree.completion(tree.best()) == max(answers, key=lambda answer: table_value(PROMPT + answer[:-1]))
    assert scorer.asked == [PROMPT + answer[:-1] for answer in answers]
    assert tree.n_value_calls == 27
    assert tree.n_generated_tokens == 27 * 6


def test_samples_are_those_of_the_engine_for_the_stream_and_equal_ones_are_one_node_that_knows_its_places():
    engine = Spelling()
    (tree,) = run_searches(engine, TableScorer(), [best_of_n(PROMPT, AnswersParams(16, WHOLE), stream=7)])
    (drawn,) = Spelling().sample([PROMPT], WHOLE, 16, streams=[7])
    by_place = {place: node.token_ids for node in tree.nodes[1:] for place in node.places}
    assert [by_place[i] for i in range(16)] == [sample.token_ids for sample in drawn]
    assert engine.calls == [(16, 12)]
    # i % 4 gives four answers; 4, 9 and 14 ran out of tokens, at different lengths of their spelling.
    assert [node.places for node in tree.nodes[1:]] == [
        (0, 8, 12),
        (1, 5, 13),
        (2, 6, 10),
        (3, 7, 11, 15),
        (4,),
        (9,),
        (14,),
    ]
    assert tree.n_value_calls == 7
    assert tree.n_generated_tokens == sum(len(sample.token_ids) for sample in drawn)


def test_an_answer_that_ended_is_preferred_to_a_cut_one_of_higher_value():
    class OneOfEach:
        def sample(self, prompts, params, n, *, streams=None):
            return [[Sample((2, 3), (-1.0, -1.0), FinishReason.LENGTH, None), ended((2, EOS))] for _ in prompts]

    class LongerIsBetter(TableScorer):
        def score(self, sequences):
            return [float(len(sequence)) for sequence in sequences]

    (tree,) = run_searches(OneOfEach(), LongerIsBetter(), [best_of_n(PROMPT, AnswersParams(2, WHOLE))])
    assert [(node.state, node.score) for node in tree.nodes[1:]] == [(NodeState.CUT, 4.0), (NodeState.ANSWER, 3.0)]
    assert tree.completion(tree.best()) == (2, EOS)


def test_by_log_probability_alone_it_asks_no_value_model_and_takes_the_likeliest():
    params = AnswersParams(4, WHOLE, Ranking(value_weight=0.0))
    (tree,) = run_searches(Spelling(), None, [best_of_n(PROMPT, params, stream=3)])
    assert tree.n_value_calls == 0
    assert tree.completion(tree.best()) == (13, EOS)  # two tokens at −1 each; the others have more


@pytest.mark.parametrize("n", [1, 5, 16])
def test_a_budget_of_tokens_draws_as_many_whole_answers_as_it_pays_for_and_is_never_passed(n):
    sampling = replace(WHOLE, max_new_tokens=6)
    (free,) = run_searches(Spelling(), TableScorer(), [best_of_n(PROMPT, AnswersParams(n, sampling))])
    for tokens in range(1, 80):
        engine = Spelling()
        params = AnswersParams(n, sampling, budget=Budget(tokens=tokens))
        (tree,) = run_searches(engine, TableScorer(), [best_of_n(PROMPT, params)])
        n_drawn = sum(node.n_merged for node in tree.nodes[1:])
        assert tree.n_generated_tokens <= tokens
        assert n_drawn == sum(n_asked for n_asked, _ in engine.calls) <= n
        # Answers asked for together may take their six tokens; below six what is left goes to one answer at a time.
        assert all(max_new_tokens == 6 or n_asked == 1 for n_asked, max_new_tokens in engine.calls)
        assert n_drawn == n or (tree.is_over_budget and tree.n_generated_tokens == tokens)
        if tokens >= 6 * n:
            assert tree == free


def test_a_budget_of_value_calls_draws_no_answer_that_could_not_be_scored():
    params = AnswersParams(16, WHOLE, budget=Budget(value_calls=3))
    (tree,) = run_searches(Spelling(), TableScorer(), [best_of_n(PROMPT, params)])
    assert sum(node.n_merged for node in tree.nodes[1:]) == tree.n_value_calls == 3
    assert tree.is_over_budget


def test_no_search_is_one_sample_and_asks_for_no_value():
    engine = Spelling()
    (tree,) = run_searches(engine, None, [sample_one(PROMPT, AnswersParams(1, WHOLE), stream=5)])
    assert tree.completion(tree.best()) == (15, EOS)
    assert engine.calls == [(1, 12)]


def test_an_answer_that_ends_at_a_stop_string_is_an_answer_where_no_value_is_read():
    (tree,) = run_searches(EveryChoice(), None, [sample_one(PROMPT, AnswersParams(1, STEP))])
    assert (tree.best().state, tree.best().token_ids) == (NodeState.ANSWER, (2, NEWLINE))
    with pytest.raises(ValueError, match=r"sampling\.stop is \('\\n',\)"):
        run_searches(EveryChoice(), TableScorer(), [best_of_n(PROMPT, AnswersParams(2, STEP))])


def test_no_answers_and_many_greedy_ones_are_refused():
    with pytest.raises(ValueError, match="n is 0, needs 1 or more"):
        AnswersParams(0, WHOLE)
    with pytest.raises(ValueError, match="greedy answers are all the same"):
        AnswersParams(2, replace(WHOLE, temperature=0.0))
