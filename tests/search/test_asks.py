"""Searches as generators: what they ask for, what they may spend, and that their streams hang on themselves alone."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason
from posttrain.search.asks import Expand, Round, Score
from posttrain.search.beam import BeamParams, beam
from posttrain.search.budget import Budget
from posttrain.search.drive import run_searches
from posttrain.search.ranking import Aggregate, Ranking
from posttrain.search.tree import NodeState, SearchTree

PROMPT = (9, 9)
STEP = SamplingParams(max_new_tokens=4, temperature=1.0, seed=0, stop=("\n",))
BEAM = BeamParams(width=2, expansions=3, max_steps=5, sampling=STEP)


class StreamEngine:
    """Every sample spells its stream and place: two tokens, then the step's end; never an answer."""

    def __init__(self):
        self.calls = []

    def sample(self, prompts, params, n, *, streams=None):
        self.calls.append((len(prompts), n, params))
        return [[_step(stream, i, params.max_new_tokens) for i in range(n)] for stream in streams]


def _step(stream, i, n_tokens):
    tokens = (10 + stream % 1000, 2000 + i, 0)[:n_tokens]
    is_whole = len(tokens) == 3
    return Sample(
        tokens,
        (-1.0,) * len(tokens),
        FinishReason.STOP if is_whole else FinishReason.LENGTH,
        "\n" if is_whole else None,
    )


class SumScorer:
    def __init__(self):
        self.n_calls = 0
        self.forgotten = []

    def score(self, sequences):
        self.n_calls += 1
        return [float(sum(sequence) % 17) for sequence in sequences]

    def forget(self, sequences):
        self.forgotten.extend(sequences)


def test_a_search_among_others_has_the_tree_of_the_search_alone_and_shares_their_batches():
    alone_engine, engine, scorer = StreamEngine(), StreamEngine(), SumScorer()
    streams = [5, 6, 7, 8]
    alone = [run_searches(alone_engine, SumScorer(), [beam(PROMPT, BEAM, stream=s)])[0] for s in streams]
    together = run_searches(engine, scorer, [beam(PROMPT, BEAM, stream=s) for s in streams])
    assert together == alone
    assert len(engine.calls) == BEAM.max_steps == scorer.n_calls  # one batch a round, whatever the number of searches
    assert len(alone_engine.calls) == 4 * BEAM.max_steps
    assert len({tree.nodes[1].token_ids for tree in together}) == len(streams)  # each has its own random stream


def test_what_falls_out_of_the_beam_is_named_once_and_never_extended():
    told, asked = [], []
    search = beam(PROMPT, BEAM, stream=1)
    ask = search.send(None)
    try:
        while True:
            if isinstance(ask, Round):
                told.extend(ask.dropped)
                ask = search.send(None)
            elif isinstance(ask, Score):
                ask = search.send(SumScorer().score(ask.sequences))
            else:
                assert isinstance(ask, Expand)
                asked.extend(ask.prefixes)
                ask = search.send(StreamEngine().sample(ask.prefixes, ask.params, ask.n, streams=ask.streams))
    except StopIteration as end:
        tree = end.value
    pruned = {tree.prompt + tree.completion(n) for n in tree.nodes if n.state is NodeState.PRUNED}
    assert len(told) == len(set(told))
    assert set(told) == pruned
    assert not pruned & set(asked)


def test_a_budget_of_tokens_is_never_exceeded_and_is_said_in_the_tree():
    for tokens in range(1, 90):
        (tree,) = run_searches(
            StreamEngine(), SumScorer(), [beam(PROMPT, replace(BEAM, budget=Budget(tokens=tokens)), stream=3)]
        )
        assert tree.n_generated_tokens <= tokens
        assert tree.is_over_budget == (tokens < 9 + 4 * 18)  # a first round of 3 x 3 tokens, then four of 2 x 3 x 3
        assert all(
            n.state is not NodeState.OPEN for n in tree.nodes if not any(c.parent == n.index for c in tree.nodes)
        )


def test_a_budget_of_value_calls_ends_the_search_before_the_round_that_would_pass_it():
    (tree,) = run_searches(StreamEngine(), SumScorer(), [beam(PROMPT, replace(BEAM, budget=Budget(value_calls=9)))])
    assert tree.n_value_calls == 3 + 6
    assert tree.is_over_budget


def test_a_budget_of_time_ends_the_search_after_the_round_in_which_it_ran_out():
    class SlowScorer(SumScorer):
        def score(self, sequences):
            time.sleep(0.2)
            return super().score(sequences)

    (tree,) = run_searches(
        StreamEngine(), SlowScorer(), [beam(PROMPT, replace(BEAM, budget=Budget(milliseconds=100)))]
    )
    assert tree.is_over_budget
    assert max(node.depth for node in tree.nodes) == 1


def test_ranking_mixes_values_and_length_normalised_log_probabilities_as_its_equation_says():
    tree = SearchTree(PROMPT)
    first = tree.grow(tree.root, (1, 2), NodeState.OPEN, logp=-3.0)
    second = tree.grow(first, (3,), NodeState.OPEN, logp=-1.0)
    first.value = 0.5

    def score(ranking):
        asking = ranking.rank(tree, [second])
        try:
            asking.send(None)
            asking.send([0.8])
        except StopIteration:
            return second.score

    assert score(Ranking()) == 0.8
    assert score(Ranking(aggregate=Aggregate.MIN)) == 0.5
    assert score(Ranking(aggregate=Aggregate.PROD)) == pytest.approx(0.4)
    assert score(Ranking(aggregate=Aggregate.MEAN)) == pytest.approx(0.65)
    assert score(Ranking(value_weight=0.25)) == pytest.approx(0.25 * 0.8 - 0.75 * 4.0)
    assert score(Ranking(value_weight=0.25, length_penalty=1.0)) == pytest.approx(0.25 * 0.8 - 0.75 * 4.0 / 3)
    second.value = None
    assert score(Ranking(value_weight=0.0)) == pytest.approx(-4.0)
    assert second.value is None  # no value model was asked


def test_a_search_that_ranks_by_log_probability_needs_no_value_model_and_one_by_value_says_so():
    by_logp = replace(BEAM, ranking=Ranking(value_weight=0.0))
    (tree,) = run_searches(StreamEngine(), None, [beam(PROMPT, by_logp)])
    assert tree.n_value_calls == 0
    with pytest.raises(ValueError, match="set value_weight to 0"):
        run_searches(StreamEngine(), None, [beam(PROMPT, BEAM)])


def test_an_answer_that_takes_width_leaves_fewer_open_branches():
    class EndsFirst(StreamEngine):
        """Of the n samples of a prefix the first is an answer."""

        def sample(self, prompts, params, n, *, streams=None):
            drawn = super().sample(prompts, params, n, streams=streams)
            for samples in drawn:
                samples[0] = Sample((*samples[0].token_ids[:-1], 1), (-1.0,) * 3, FinishReason.STOP, None)
            return drawn

    full, freeing = EndsFirst(), EndsFirst()
    run_searches(full, SumScorer(), [beam(PROMPT, BEAM)])
    (tree,) = run_searches(freeing, SumScorer(), [beam(PROMPT, replace(BEAM, answers_take_width=True))])
    assert [n_prefixes for n_prefixes, _, _ in full.calls] == [1, 2, 2, 2, 2]
    assert [n_prefixes for n_prefixes, _, _ in freeing.calls] == [1, 1]  # one answer, then a second: no width is left
    assert sum(n.state is NodeState.ANSWER for n in tree.nodes) == 2
    assert not any(n.state is NodeState.OPEN for n in tree.nodes if n.depth == 2)
