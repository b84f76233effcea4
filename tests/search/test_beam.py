"""Step-level search against exhaustive enumeration over a small written-out tree of steps."""

from __future__ import annotations

import itertools

import pytest

from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason
from posttrain.search.beam import BeamParams, beam_search
from posttrain.search.best_of_n import ScoredSample, best_of, score_samples
from posttrain.search.tree import NodeState

PROMPT = (7, 7)
NEWLINE, EOS = 0, 1
STEP = SamplingParams(max_new_tokens=4, temperature=1.0, seed=0, stop=("\n",))
WHOLE = SamplingParams(max_new_tokens=12, temperature=1.0, seed=0)


class EveryChoice:
    """An engine whose n samples are the n choices of a written-out tree, in a fixed order.

    Two steps of one token plus newline are chosen from {2, 3, 4}; the third ends with EOS.
    """

    def sample(self, prompts, params, n, *, streams=None):
        return [[self._nth(tuple(prompt), i, bool(params.stop)) for i in range(n)] for prompt in prompts]

    def _nth(self, prefix, i, is_stepwise):
        if not is_stepwise:
            a, b, c = list(itertools.product((2, 3, 4), repeat=3))[i]
            return _ended((a, NEWLINE, b, NEWLINE, c, EOS))
        choice = 2 + i % 3
        n_steps_done = prefix.count(NEWLINE)
        if n_steps_done == 2:
            return _ended((choice, EOS))
        return Sample((choice, NEWLINE), (-1.0, 0.0), FinishReason.STOP, "\n")


def _ended(tokens):
    return Sample(tokens, tuple(-1.0 for _ in tokens), FinishReason.STOP, None)


class TableScorer:
    """V is a fixed, distinct number for every prefix; records what it was asked."""

    def __init__(self):
        self.asked = []
        self.forgotten = []

    def score(self, sequences):
        self.asked.extend(tuple(s) for s in sequences)
        return [_table_value(tuple(s)) for s in sequences]

    def forget(self, sequences):
        self.forgotten.extend(sequences)


def _table_value(sequence):
    # A polynomial of the tokens: no two prefixes of this tree share a value, and order is not monotone in depth.
    return sum((i + 1) * token**2 % 11 + token / 100**i for i, token in enumerate(sequence)) % 5


def _beam_by_enumeration(width):
    """The paper's algorithm written over explicit token tuples: keep the best `width`, collect answers, re-score."""
    beam = [()]
    for _ in range(2):
        grown = [(*prefix, choice, NEWLINE) for prefix in beam for choice in (2, 3, 4)]
        beam = sorted(grown, key=lambda c: -_table_value(PROMPT + c))[:width]
    answers = [(*prefix, choice, EOS) for prefix in beam for choice in (2, 3, 4)]
    return max(answers, key=lambda c: _table_value(PROMPT + c[:-1]))


@pytest.mark.parametrize("width", [1, 2, 3, 9])
def test_beam_finds_the_answer_of_the_enumerated_algorithm_for_each_width(width):
    params = BeamParams(width=width, expansions=3, max_steps=20, sampling=STEP)
    (tree,) = beam_search(EveryChoice(), TableScorer(), [PROMPT], params)
    assert tree.completion(tree.best()) == _beam_by_enumeration(width)


def test_full_width_beam_equals_best_of_all_answers():
    # Width 9 keeps all 9 two-step prefixes, so its pool is all 27 answers, the same that best-of-27 draws.
    (beam,) = beam_search(EveryChoice(), TableScorer(), [PROMPT], BeamParams(9, 3, 20, STEP))
    (whole,) = score_samples(EveryChoice(), TableScorer(), [PROMPT], WHOLE, n=27)
    assert beam.completion(beam.best()) == best_of(whole).sample.token_ids


def test_value_is_read_after_the_delimiter_of_a_step_and_before_the_eos_of_an_answer():
    scorer = TableScorer()
    beam_search(EveryChoice(), scorer, [PROMPT], BeamParams(1, 3, 20, STEP))
    partial = [s for s in scorer.asked if s.count(NEWLINE) < 2 or s[-1] == NEWLINE]
    answers = [s for s in scorer.asked if s not in partial]
    assert all(s[-1] == NEWLINE for s in partial)
    assert len(answers) == 3
    assert all(s[-1] in (2, 3, 4) for s in answers)  # the choice itself, its EOS not scored


def test_problems_searched_together_give_the_trees_of_problems_searched_alone():
    params = BeamParams(width=2, expansions=3, max_steps=20, sampling=STEP)
    prompts = [PROMPT, (5,), (9, 4, 4)]
    together = beam_search(EveryChoice(), TableScorer(), prompts, params)
    alone = [beam_search(EveryChoice(), TableScorer(), [p], params)[0] for p in prompts]
    assert [t.nodes for t in together] == [t.nodes for t in alone]


def test_best_of_prefers_an_answer_that_ended_to_a_cut_one_of_higher_value():
    ended = ScoredSample(_ended((2, EOS)), 0.1)
    cut = ScoredSample(Sample((2, 3), (-1.0, -1.0), FinishReason.LENGTH, None), 0.9)
    assert best_of([cut, ended]) is ended
    assert best_of([cut]) is cut


def test_identical_steps_are_one_node_that_remembers_how_often_it_was_sampled():
    # Six expansions of three distinct choices: each is drawn twice.
    (tree,) = beam_search(EveryChoice(), TableScorer(), [PROMPT], BeamParams(3, 6, 1, STEP))
    assert [(node.token_ids, node.n_merged) for node in tree.nodes[1:]] == [
        ((2, NEWLINE), 2),
        ((3, NEWLINE), 2),
        ((4, NEWLINE), 2),
    ]


def test_every_sampled_token_is_counted_also_those_of_pruned_branches():
    (tree,) = beam_search(EveryChoice(), TableScorer(), [PROMPT], BeamParams(1, 3, 20, STEP))
    assert tree.n_generated_tokens == 3 * 3 * 2  # three rounds of three samples of two tokens


def test_a_beam_stopped_by_max_steps_offers_its_cut_nodes_only_when_nothing_ended():
    (tree,) = beam_search(EveryChoice(), TableScorer(), [PROMPT], BeamParams(2, 3, 1, STEP))
    assert tree.best().state is NodeState.CUT
    (tree,) = beam_search(EveryChoice(), TableScorer(), [PROMPT], BeamParams(2, 3, 3, STEP))
    assert tree.best().state is NodeState.ANSWER


def test_a_search_without_delimiters_or_with_greedy_expansions_is_refused():
    with pytest.raises(ValueError, match="needs step delimiters"):
        BeamParams(2, 2, 20, WHOLE)
    with pytest.raises(ValueError, match="temperature above 0"):
        BeamParams(2, 2, 20, SamplingParams(max_new_tokens=4, temperature=0.0, seed=0, stop=("\n",)))
    with pytest.raises(ValueError, match="use beam_search for steps"):
        score_samples(EveryChoice(), TableScorer(), [PROMPT], STEP, n=2)
