"""Whole answers sampled independently, and one of them chosen: by value, by log-probability, or the only one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.sampling import SamplingParams
from posttrain.search.asks import Asking, Round, Search, branch_stream
from posttrain.search.budget import Budget
from posttrain.search.ranking import Ranking
from posttrain.search.tree import NodeState, SearchTree


@dataclass(frozen=True, slots=True)
class AnswersParams:
    n: int  # whole answers
    sampling: SamplingParams
    ranking: Ranking = field(default_factory=Ranking)
    budget: Budget = field(default_factory=Budget)
    scores_end: bool = False  # V is read after an answer's end: an agent's turn

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}, needs 1 or more")
        if self.sampling.temperature == 0 and self.n > 1:
            raise ValueError(
                f"n is {self.n} and the temperature 0: greedy answers are all the same. Set n to 1, or sample"
            )

    def plant(self, prompt: Sequence[int]) -> SearchTree:
        """The tree of a search that is still to grow."""
        return SearchTree(tuple(prompt), self.scores_end, self.budget.answer_tokens)


def best_of_n(prompt: Sequence[int], params: AnswersParams, *, stream: int = 0) -> Search:
    """n whole answers below the root, ranked by `params.ranking`; identical ones are one node.

    Within its budget of tokens the n samples are those of SamplingEngine.sample for this stream.
    """
    if params.sampling.stop and params.ranking.value_weight > 0 and not params.scores_end:
        raise ValueError(
            f"V of an answer is read before its EOS, but sampling.stop is {params.sampling.stop}: whole answers that "
            "are ranked by value end with EOS. Use a beam for steps"
        )
    tree = params.plant(prompt)
    answers = yield from draw_answers(tree, params, stream)
    yield from params.ranking.rank(tree, answers)
    yield Round(tree, dropped=())
    return tree


def sample_one(prompt: Sequence[int], params: AnswersParams, *, stream: int = 0) -> Search:
    """No search: the first sample is the answer, the likeliest tokens at a temperature of 0."""
    tree = params.plant(prompt)
    yield from draw_answers(tree, params, stream)
    yield Round(tree, dropped=())
    return tree


def draw_answers(tree: SearchTree, params: AnswersParams, stream: int) -> Asking:
    """n whole answers, identical ones merged, at once; with a budget of tokens as many at a time as it is sure to pay.

    Answers are mostly shorter than they may be, so what they leave pays for further ones, down to a last cut one.
    """
    purse = params.budget.start()
    n_wanted = min(params.n, params.budget.value_calls or params.n)
    tree.is_over_budget = n_wanted < params.n
    n_drawn, streams = 0, [stream]
    while n_drawn < n_wanted:
        n = purse.n_whole(tree, params.sampling.max_new_tokens, n_wanted - n_drawn)
        if not (yield from purse.expand(tree, [tree.root], params.sampling, n, streams)):
            break
        n_drawn += n
        streams = [branch_stream(stream, n_drawn)]
    answers = tree.nodes[1:]
    for answer in answers:
        if answer.state is NodeState.OPEN:  # a stop string ends a whole answer as EOS does
            answer.state = NodeState.ANSWER
    return answers
