"""The description of a search: which generator it starts, what it refuses and in which words, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from posttrain.sampling import SamplingParams
from posttrain.search.beam import BeamParams, beam
from posttrain.search.best_of_n import AnswersParams, best_of_n, sample_one
from posttrain.search.budget import Budget
from posttrain.search.drive import run_searches
from posttrain.search.dvts import dvts
from posttrain.search.ranking import Aggregate, Ranking
from posttrain.search.spec import Algorithm, SearchSpec, SearchSpecError, StepSpec, start
from posttrain.search.tree import NodeState
from posttrain.search.vote import majority, weighted_majority
from tests.search.written_tree import EOS, NEWLINE, PROMPT, EveryChoice, TableScorer

SAMPLING = SamplingParams(max_new_tokens=12, temperature=0.7, seed=3)


def grown(search):
    (tree,) = run_searches(EveryChoice(), TableScorer(), [search])
    return tree


def last_choice(completion):
    return str(completion[-2])


def test_each_algorithm_starts_its_generator_with_the_numbers_of_the_spec():
    steps = BeamParams(2, 3, 9, replace(SAMPLING, stop=("\n",), max_new_tokens=4), budget=Budget(answer_tokens=12))
    spec = SearchSpec(n=5, beam_width=2, expansions=3, max_steps=9, step=StepSpec(max_tokens=4))
    answers = AnswersParams(5, SAMPLING)
    expected = {
        Algorithm.NONE: sample_one(PROMPT, AnswersParams(1, SAMPLING), stream=8),
        Algorithm.BEST_OF_N: best_of_n(PROMPT, answers, stream=8),
        Algorithm.MAJORITY: majority(PROMPT, answers, last_choice, stream=8),
        Algorithm.WEIGHTED_MAJORITY: weighted_majority(PROMPT, answers, last_choice, stream=8),
        Algorithm.BEAM: beam(PROMPT, steps, stream=8),
        Algorithm.DVTS: dvts(PROMPT, steps, stream=8),
    }
    assert expected.keys() == set(Algorithm)
    for algorithm, search in expected.items():
        own = start(replace(spec, algorithm=algorithm), PROMPT, SAMPLING, 8, last_choice)
        assert grown(own) == grown(search), algorithm


def test_ranking_and_budget_reach_the_search():
    spec = SearchSpec(Algorithm.BEAM, beam_width=2, expansions=3, value_weight=0.5, aggregate=Aggregate.MEAN)
    spec = replace(spec, length_penalty=1.0, budget=Budget(value_calls=9))
    params = BeamParams(
        2,
        3,
        20,
        replace(SAMPLING, stop=("\n",)),
        ranking=Ranking(0.5, 1.0, Aggregate.MEAN),
        budget=Budget(value_calls=9, answer_tokens=12),
    )
    assert grown(start(spec, PROMPT, SAMPLING, 0)) == grown(beam(PROMPT, params))


def test_no_answer_of_a_beam_is_longer_than_a_whole_answer_may_be():
    # Two steps of two tokens and an end of two: an answer has six. With five the last step is cut in front of its EOS.
    spec = SearchSpec(Algorithm.BEAM, beam_width=2, expansions=3)
    for n_tokens in range(1, 8):
        tree = grown(start(spec, PROMPT, replace(SAMPLING, max_new_tokens=n_tokens), 0))
        lengths = [len(tree.completion(node)) for node in tree.nodes]
        assert max(lengths) == min(n_tokens, 6)
        assert tree.best().state is (NodeState.ANSWER if n_tokens >= 6 else NodeState.CUT)
        assert (tree.completion(tree.best())[-1] == EOS) == (n_tokens >= 6)
    # At a limit of four both open steps end on it: the search is over, with NEWLINE last and nothing more sampled.
    tree = grown(start(spec, PROMPT, replace(SAMPLING, max_new_tokens=4), 0))
    assert tree.completion(tree.best())[-1] == NEWLINE
    assert tree.n_generated_tokens == 3 * 2 + 2 * 3 * 2


@pytest.mark.parametrize(
    ("field", "changes", "message"),
    [
        ("algorithm", {"algorithm": "mcts"}, "algorithm is 'mcts', needs one of none, best_of_n, majority"),
        ("n", {"n": 0}, "n is 0, needs 1 or more"),
        ("beam_width", {"beam_width": -1}, "beam_width is -1, needs 1 or more"),
        ("expansions", {"expansions": 0}, "expansions is 0"),
        ("max_steps", {"max_steps": 0}, "max_steps is 0"),
        ("step.stop", {"step": StepSpec(stop=())}, r"step.stop is \(\), needs strings that end a step"),
        ("step.max_tokens", {"step": StepSpec(max_tokens=0)}, "step.max_tokens is 0"),
        ("value_weight", {"value_weight": 1.5}, r"value_weight is 1.5, needs a number from 0 \(log π\) to 1 \(V\)"),
        ("value_weight", {"value_weight": float("nan")}, "value_weight is nan"),
        ("length_penalty", {"length_penalty": float("inf")}, "length_penalty is inf"),
    ],
)
def test_a_field_that_cannot_be_is_named_with_what_came_and_what_is_needed(field, changes, message):
    with pytest.raises(SearchSpecError, match=message) as error:
        SearchSpec(**changes)
    assert error.value.field == field


def test_a_search_larger_than_its_caps_is_refused_and_fields_that_it_does_not_read_are_not_counted():
    SearchSpec(Algorithm.BEAM, n=99, beam_width=8, expansions=8).require_within()
    SearchSpec(Algorithm.BEST_OF_N, n=16, beam_width=99).require_within()
    SearchSpec(Algorithm.NONE, n=99).require_within()
    with pytest.raises(SearchSpecError, match="beam_width x expansions is '8 x 9', needs 64 or fewer"):
        SearchSpec(Algorithm.DVTS, beam_width=8, expansions=9).require_within()
    with pytest.raises(SearchSpecError, match="n is 17, needs 16 or fewer"):
        SearchSpec(Algorithm.MAJORITY, n=17).require_within()
    with pytest.raises(SearchSpecError, match="n is 5, needs 4 or fewer"):
        SearchSpec(Algorithm.MAJORITY, n=5).require_within(max_n=4)


def test_spec_and_sampling_that_do_not_go_together_are_refused_before_anything_is_asked():
    greedy, stopping = replace(SAMPLING, temperature=0.0), replace(SAMPLING, stop=("Q:",))
    with pytest.raises(SearchSpecError, match="temperature is 0, needs more than 0: best_of_n compares"):
        start(SearchSpec(Algorithm.BEST_OF_N), PROMPT, greedy, 0)
    with pytest.raises(SearchSpecError, match="needs none: the steps of beam end at step"):
        start(SearchSpec(Algorithm.BEAM), PROMPT, stopping, 0)
    with pytest.raises(SearchSpecError, match="V of an answer is read before its EOS"):
        start(SearchSpec(Algorithm.BEST_OF_N), PROMPT, stopping, 0)
    with pytest.raises(SearchSpecError, match="needs a way to read answers"):
        start(SearchSpec(Algorithm.MAJORITY), PROMPT, SAMPLING, 0)
    assert grown(start(SearchSpec(), PROMPT, replace(greedy, stop=("\n",)), 0)).best() is not None


def test_a_spec_says_whether_it_asks_a_value_model():
    needing = {a for a in Algorithm if SearchSpec(a).needs_values}
    assert needing == {Algorithm.BEST_OF_N, Algorithm.WEIGHTED_MAJORITY, Algorithm.BEAM, Algorithm.DVTS}
    by_logp = {a for a in Algorithm if SearchSpec(a, value_weight=0.0).needs_values}
    assert by_logp == {Algorithm.WEIGHTED_MAJORITY}
