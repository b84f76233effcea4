"""Diverse verifier tree search: against beams of width one and enumeration, what is shared, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason
from posttrain.search.asks import Expand, Round, Score
from posttrain.search.beam import BeamParams, beam
from posttrain.search.budget import Budget
from posttrain.search.drive import run_searches
from posttrain.search.dvts import dvts
from posttrain.search.tree import NodeState
from tests.search.written_tree import EOS, NEWLINE, PROMPT, STEP, EveryChoice, TableScorer, ended, table_value

PARAMS = BeamParams(width=4, expansions=3, max_steps=6, sampling=STEP)


class Streams:
    """Steps of two tokens chosen by stream and place; from the third step on one sample in two is an answer."""

    def __init__(self, n_choices=50):
        self.n_choices = n_choices
        self.calls = []

    def sample(self, prompts, params, n, *, streams=None):
        self.calls.append((tuple(map(tuple, prompts)), n, params.max_new_tokens, tuple(streams)))
        return [
            [self._nth(tuple(p), stream, i, params) for i in range(n)]
            for p, stream in zip(prompts, streams, strict=True)
        ]

    def _nth(self, prefix, stream, i, params: SamplingParams):
        choice = 2 + (stream // 7 + 13 * i) % self.n_choices
        if params.max_new_tokens < 2:
            return Sample((choice,), (-1.0,), FinishReason.LENGTH, None)
        if prefix.count(NEWLINE) >= 2 and choice % 2:
            return ended((choice, EOS))
        return Sample((choice, NEWLINE), (-1.0, 0.0), FinishReason.STOP, "\n")


@pytest.mark.parametrize("width", [1, 2, 4])
def test_sub_trees_of_one_table_are_beams_of_width_one_and_share_every_node(width):
    # EveryChoice gives each prefix the same samples whatever the stream, so that all sub-trees take the same way.
    params = replace(PARAMS, width=width)
    (diverse,) = run_searches(EveryChoice(), TableScorer(), [dvts(PROMPT, params)])
    (alone,) = run_searches(EveryChoice(), TableScorer(), [beam(PROMPT, replace(params, width=1))])
    assert [(n.token_ids, n.parent, n.state, n.value) for n in diverse.nodes] == [
        (n.token_ids, n.parent, n.state, n.value) for n in alone.nodes
    ]
    assert all(node.n_merged == width for node in diverse.nodes[1:])
    assert diverse.n_value_calls == alone.n_value_calls  # a node is scored once, however many sub-trees reach it
    assert diverse.n_generated_tokens == width * alone.n_generated_tokens


def test_every_sub_tree_keeps_its_own_best_step_and_draws_from_its_own_stream():
    engine, scorer = Streams(), TableScorer()
    (tree,) = run_searches(engine, scorer, [dvts(PROMPT, PARAMS, stream=11)])
    first_prompts, _, _, first_streams = engine.calls[0]
    assert first_prompts == (PROMPT,) * 4
    assert len(set(first_streams)) == 4
    families = [
        {PROMPT + sample.token_ids for sample in samples}
        for samples in Streams().sample(first_prompts, STEP, 3, streams=first_streams)
    ]
    best = [max(family, key=table_value) for family in families]
    assert engine.calls[1][0] == tuple(best)  # the next round goes on from the best of each family, in their order
    kept_by_a_beam = sorted(set().union(*families), key=table_value, reverse=True)[:4]
    assert set(best) != set(kept_by_a_beam)  # one family has more than one of the four best, and keeps one
    pruned = {PROMPT + tree.completion(n) for n in tree.nodes if n.depth == 1 and n.state is NodeState.PRUNED}
    assert pruned == set().union(*families) - set(best)


def test_a_search_among_others_has_the_tree_of_the_search_alone_and_another_stream_another_tree():
    alone = [run_searches(Streams(), TableScorer(), [dvts(PROMPT, PARAMS, stream=s)])[0] for s in (5, 6, 7)]
    together = run_searches(Streams(), TableScorer(), [dvts(PROMPT, PARAMS, stream=s) for s in (5, 6, 7)])
    assert together == alone
    assert len({tuple(node.token_ids for node in tree.nodes) for tree in together}) == 3


def test_a_prefix_that_one_sub_tree_drops_and_another_keeps_is_not_told_as_dropped():
    told, asked = [], []
    engine, scorer = Streams(n_choices=4), TableScorer()  # few choices: sub-trees meet
    search = dvts(PROMPT, PARAMS, stream=2)
    ask = search.send(None)
    try:
        while True:
            if isinstance(ask, Round):
                told.extend(ask.dropped)
                ask = search.send(None)
            elif isinstance(ask, Score):
                ask = search.send(scorer.score(ask.sequences))
            else:
                assert isinstance(ask, Expand)
                asked.extend(ask.prefixes)
                ask = search.send(engine.sample(ask.prefixes, ask.params, ask.n, streams=ask.streams))
    except StopIteration as end:
        tree = end.value
    assert len(asked) > len(set(asked))  # some sub-trees did meet
    assert len(told) == len(set(told))
    assert not set(told) & set(asked)
    assert set(told) == {PROMPT + tree.completion(n) for n in tree.nodes if n.state is NodeState.PRUNED}


def test_budgets_are_never_passed_and_the_tree_says_so():
    (free,) = run_searches(Streams(), TableScorer(), [dvts(PROMPT, PARAMS, stream=3)])
    for tokens in range(1, free.n_generated_tokens + 4):
        params = replace(PARAMS, budget=Budget(tokens=tokens))
        (tree,) = run_searches(Streams(), TableScorer(), [dvts(PROMPT, params, stream=3)])
        assert tree.n_generated_tokens <= tokens
        if tokens < free.n_generated_tokens:
            assert tree.is_over_budget
    params = replace(PARAMS, budget=Budget(value_calls=20))
    (tree,) = run_searches(Streams(), TableScorer(), [dvts(PROMPT, params, stream=3)])
    assert 0 < tree.n_value_calls <= 20
    assert tree.is_over_budget


def test_a_sub_tree_ends_with_its_first_answer_where_answers_take_width():
    going_on, ending = Streams(), Streams()
    run_searches(going_on, TableScorer(), [dvts(PROMPT, PARAMS, stream=4)])
    (tree,) = run_searches(ending, TableScorer(), [dvts(PROMPT, replace(PARAMS, answers_take_width=True), stream=4)])
    n_tips = [len(prompts) for prompts, *_ in ending.calls]
    assert n_tips == sorted(n_tips, reverse=True)
    assert n_tips[:3] == [4, 4, 4]  # answers come in the third round at the earliest
    assert sum(n_tips) < sum(len(prompts) for prompts, *_ in going_on.calls)
    parents = {node.parent for node in tree.nodes if node.state is NodeState.ANSWER}
    for node in tree.nodes:  # below a node with an answer nothing went on
        if node.parent in parents:
            assert not any(other.parent == node.index for other in tree.nodes)
