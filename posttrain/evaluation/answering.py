"""One policy's answers to a chunk of problems, decoded in one way, as records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.evaluation.decoding import Decoding, Greedy, Sampled, Searched, methods_of
from posttrain.evaluation.eval_config import name_of
from posttrain.evaluation.networks import Answering, Chunk
from posttrain.evaluation.remote import Completion
from posttrain.evaluation.searching import readable, search_trees, trees_of
from posttrain.rewards.grade import grade_all
from posttrain.schema import AnswerRecord, FinishReason, Grade, Problem
from posttrain.search.spec import Algorithm, SearchSpec
from posttrain.search.tree import NodeState, SearchTree
from posttrain.search.tree_json import tree_to_json
from posttrain.search.vote import vote_of_value, votes


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer before it is graded."""

    problem: Problem
    how: str
    budget: int
    text: str
    finish_reason: FinishReason
    n_generated_tokens: int
    value: float | None
    n_value_calls: int = 0
    said: str | None = None
    n_steps: int = 0
    tree: str | None = None


def answer(a: Answering, chunk: Chunk, decoding: Decoding) -> list[AnswerRecord]:
    """The records of one decoding, in the order of the problems."""
    match decoding:
        case Greedy() if a.token_access is None:
            return graded(a, list(_greedy_elsewhere(a, chunk)))
        case Sampled():
            return list(_sampled(a, chunk, decoding))
        case _:
            return graded(a, list(_searched(a, chunk, decoding)))


def graded(a: Answering, answers: Sequence[_Answer]) -> list[AnswerRecord]:
    """Records of these answers, graded together by every grader of the protocol."""
    names = a.protocol.graders
    pairs = [(answer.problem, answer.text) for answer in answers]
    if not names:
        return [_record(a, one, (), grade) for one, grade in zip(answers, _grades(a, pairs), strict=True)]
    flat = _grades(a, [(replace(problem, grader=name), text) for name in names for problem, text in pairs])
    by_grader = [flat[k * len(answers) : (k + 1) * len(answers)] for k in range(len(names))]
    return [
        _record(a, one, tuple(zip(names, grades, strict=True)), grades[0])
        for one, grades in zip(answers, zip(*by_grader, strict=True), strict=True)
    ]


def _grades(a: Answering, pairs: Sequence[tuple[Problem, str]]) -> list[Grade]:
    """Of each answer to a problem, UNGRADED where none is known to be right."""
    known = iter(grade_all([pair for pair in pairs if pair[0].answer], a.pool))
    return [next(known) if problem.answer else Grade.UNGRADED for problem, _ in pairs]


def single_answer(a: Answering, problem: Problem, how: str, completion: Completion, value: float | None) -> _Answer:
    """One completion as an answer to its problem."""
    text = a.protocol.answer_in(completion.text)
    n_value_calls = int(value is not None)
    return _Answer(problem, how, 1, text, completion.finish_reason, completion.n_tokens, value, n_value_calls)


def _greedy_elsewhere(a: Answering, chunk: Chunk) -> Iterator[_Answer]:
    """The likeliest answers of a server."""
    drawn = a.completer.complete(chunk.problems, chunk.streams, a.sampling(temperature=0.0), 1)
    for problem, (completion,) in zip(chunk.problems, drawn, strict=True):
        yield single_answer(a, problem, "greedy", completion, None)


def _sampled(a: Answering, chunk: Chunk, sampled: Sampled) -> Iterator[AnswerRecord]:
    """n samples of each problem; of their first m = 2, 4, ..., those that votes and values choose."""
    if a.scorer is None:
        completions = a.completer.complete(chunk.problems, chunk.streams, a.sampling(), sampled.n)
        drawn = [[(completion, None) for completion in own] for own in completions]
    else:
        spec = SearchSpec(Algorithm.BEST_OF_N, n=sampled.n)
        drawn = [_in_order_drawn(a, tree) for tree in trees_of(a, chunk, spec, a.sampling())]
    answers = [
        single_answer(a, problem, "sample", completion, value)
        for problem, own in zip(chunk.problems, drawn, strict=True)
        for completion, value in own
    ]
    records = graded(a, answers)
    for place, problem in enumerate(chunk.problems):
        own = records[place * sampled.n : (place + 1) * sampled.n]
        yield from own
        said = [readable(a, problem, record.text) for record in own]
        for m in sampled.prefix_sizes():
            yield from _chosen(a, own[:m], said[:m])


def _in_order_drawn(a: Answering, tree: SearchTree) -> list[tuple[Completion, float | None]]:
    """The samples of a tree of whole answers, with their values."""
    by_place: dict[int, tuple[Completion, float | None]] = {}
    for node in tree.nodes[1:]:
        completion = Completion(a.tokens.text(node.token_ids), _finish_reason(node.state), len(node.token_ids))
        by_place |= dict.fromkeys(node.places, (completion, node.value))
    return [by_place[place] for place in sorted(by_place)]


def _chosen(a: Answering, own: Sequence[AnswerRecord], said: Sequence[str | None]) -> Iterator[AnswerRecord]:
    """What each way of choosing makes of the first m samples; each is charged for all m."""
    ranks: dict[str, Sequence[Any]] = {"majority": votes(said, [1.0] * len(own))}
    values = [record.value for record in own if record.value is not None]
    if a.scorer is not None:
        ranks["weighted_majority"] = votes(said, [vote_of_value(value) for value in values])
        ranks["best_of_n"] = [
            (record.finish_reason is FinishReason.STOP, value) for record, value in zip(own, values, strict=True)
        ]
    for how, rank in ranks.items():
        best = max(range(len(own)), key=rank.__getitem__)
        yield replace(
            own[best],
            method=f"{name_of(a.config)}/{how}",
            budget=len(own),
            n_generated_tokens=sum(record.n_generated_tokens for record in own),
            n_value_calls=0 if how == "majority" else len(own),
        )


def _searched(a: Answering, chunk: Chunk, decoding: Greedy | Searched) -> Iterator[_Answer]:
    """A search's best answer; no answer is an empty one."""
    ((how, budget, _),) = methods_of(decoding, has_value=a.scorer is not None)
    for problem, tree in zip(chunk.problems, search_trees(a, chunk, decoding), strict=True):
        best = tree.best()
        text = "" if best is None else a.protocol.answer_in(a.tokens.text(tree.completion(best)))
        finish_reason = FinishReason.LENGTH if best is None else _finish_reason(best.state)
        yield _Answer(
            problem,
            how,
            budget,
            text,
            finish_reason,
            tree.n_generated_tokens,
            value=None if best is None else best.value,
            n_value_calls=tree.n_value_calls,
            said=readable(a, problem, text),
            n_steps=0 if best is None else best.depth,
            tree=json.dumps(tree_to_json(tree, a.tokens.text)) if a.config.trees else None,
        )


def _finish_reason(state: NodeState) -> FinishReason:
    return FinishReason.STOP if state is NodeState.ANSWER else FinishReason.LENGTH


def _record(a: Answering, answer: _Answer, grades: tuple[tuple[str, Grade], ...], grade: Grade) -> AnswerRecord:
    return AnswerRecord(
        task_id=answer.problem.task_id,
        method=f"{name_of(a.config)}/{answer.how}",
        seed=a.config.seed,
        budget=answer.budget,
        text=answer.text,
        grade=grade,
        finish_reason=answer.finish_reason,
        n_generated_tokens=answer.n_generated_tokens,
        value=answer.value,
        grades=grades,
        tags=answer.problem.tags,
        n_value_calls=answer.n_value_calls,
        answer=answer.said,
        n_steps=answer.n_steps,
        tree=answer.tree,
    )
