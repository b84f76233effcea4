"""Self-consistency: whole answers vote with what they say, each with one vote or with its value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from posttrain.search.asks import Round, Search, read_values
from posttrain.search.best_of_n import AnswersParams, draw_answers
from posttrain.search.tree import Node, SearchTree

AnswerOf = Callable[[tuple[int, ...]], str | None]  # what a completion answers, None where that cannot be read


def votes(answers: Sequence[str | None], weights: Sequence[float]) -> list[float]:
    """For each answer the weights of all that say the same; 0 for None, which never gets a vote."""
    total: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            total[answer] = total.get(answer, 0.0) + weight
    return [0.0 if answer is None else total[answer] for answer in answers]


def vote_of_value(value: float) -> float:
    """The vote of an answer of this V: the reward that is expected of it, and nothing where that is below none.

    With negative weights, two answers that agree would weigh less than either.
    """
    return max(value, 0.0)


def majority(prompt: Sequence[int], params: AnswersParams, answer_of: AnswerOf, *, stream: int = 0) -> Search:
    """The first sample of the most frequent answer (self-consistency, arXiv 2203.11171); no value is asked for."""
    tree = params.plant(prompt)
    drawn = yield from draw_answers(tree, params, stream)
    return (yield from _elect(tree, drawn, [float(node.n_merged) for node in drawn], answer_of))


def weighted_majority(prompt: Sequence[int], params: AnswersParams, answer_of: AnswerOf, *, stream: int = 0) -> Search:
    """The first sample of the answer whose samples have the largest sum of V."""
    tree = params.plant(prompt)
    drawn = yield from draw_answers(tree, params, stream)
    if drawn:
        yield from read_values(tree, drawn)
    weights = [node.n_merged * vote_of_value(node.value) for node in drawn if node.value is not None]
    return (yield from _elect(tree, drawn, weights, answer_of))


def _elect(tree: SearchTree, drawn: Sequence[Node], weights: Sequence[float], answer_of: AnswerOf) -> Search:
    answers = [answer_of(tree.completion(node)) for node in drawn]
    for node, score in zip(drawn, votes(answers, weights), strict=True):
        node.score = score
    if drawn:  # also a cut answer votes and may be elected, if it can be read
        tree.elected = max(drawn, key=lambda node: node.score).index
    yield Round(tree, dropped=())
    return tree
