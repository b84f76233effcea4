"""Grading completions by the grader that their problem names.

Model text is compared, never evaluated: verifiers of reasoning-gym that would evaluate it are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

from posttrain.rewards.final_number import final_answer, grade_number, plain_number
from posttrain.rewards.graders import Grader, grader_named
from posttrain.rewards.picture import PICTURE_PREFIX, grade_pictures
from posttrain.rewards.pool import GradeRequest, GradingPool
from posttrain.schema import Grade, Problem

REASONING_GYM_PREFIX = "reasoning_gym:"
# Verifiers of their own that compare a number and do nothing else, as read in reasoning-gym 0.1.25. All others must
# be the package's default, which compares text.
NUMBER_VERIFIERS = frozenset({"chain_sum", "gsm_symbolic", "products"})


def grade(problem: Problem, completion_text: str) -> Grade:
    """Grade one completion by the problem's grader, in this process.

    `reasoning_gym:<dataset>`: CORRECT when the data set's own verifier gives 1.0, and, where the gold answer is a
    number, the answer is that number too. `picture:<folder>`: see grade_pictures. Others: GRADERS. Raises ValueError
    when the problem itself cannot be graded, and for a grader that only a GradingPool may run.
    """
    if problem.grader.startswith(REASONING_GYM_PREFIX):
        answer = final_answer(completion_text)
        return Grade.UNPARSED if answer is None else _grade_by_reasoning_gym(problem, answer)
    if problem.grader.startswith(PICTURE_PREFIX):
        return grade_pictures([(problem, completion_text)])[0]
    grader = _grader_of(problem)
    if grader.verify is not None:
        raise ValueError(
            f"{problem.where}: grader {problem.grader!r} uses computer algebra, which an answer may hang: "
            "grade it with grade_all in a GradingPool"
        )
    try:
        return grader(problem.answer, completion_text)
    except ValueError as error:
        raise ValueError(f"{problem.where}: {error}") from None


def grade_all(pairs: Sequence[tuple[Problem, str]], pool: GradingPool) -> list[Grade]:
    """Grade each completion by its problem's grader: pictures together, what needs computer algebra in the pool.

    Raises what `grade`, `grade_pictures` and `GradingPool.grade` raise.
    """
    kinds = [_kind_of(problem) for problem, _ in pairs]
    requests = [
        GradeRequest(problem.answer, text, problem.grader)
        for (problem, text), kind in zip(pairs, kinds, strict=True)
        if kind == "pooled"
    ]
    pictures = [pair for pair, kind in zip(pairs, kinds, strict=True) if kind == "picture"]
    apart = {"pooled": iter(pool.grade(requests)), "picture": iter(grade_pictures(pictures))}
    return [
        next(apart[kind]) if kind in apart else grade(problem, text)
        for (problem, text), kind in zip(pairs, kinds, strict=True)
    ]


def extracted_answer(problem: Problem, completion_text: str) -> str | None:
    """The text that the problem's grader takes for the answer; None where it finds none. Equal texts vote together."""
    if problem.grader.startswith(PICTURE_PREFIX):
        return completion_text
    if problem.grader.startswith(REASONING_GYM_PREFIX):
        return final_answer(completion_text)
    return _grader_of(problem).extract(completion_text)


def _kind_of(problem: Problem) -> Literal["pooled", "picture", "here"]:
    """Where its answers are graded."""
    if problem.grader.startswith(PICTURE_PREFIX):
        return "picture"
    if problem.grader.startswith(REASONING_GYM_PREFIX) or _grader_of(problem).verify is None:
        return "here"
    return "pooled"


def _grader_of(problem: Problem) -> Grader:
    try:
        return grader_named(problem.grader)
    except ValueError as error:
        raise ValueError(f"{problem.where}: {error}") from None


def _grade_by_reasoning_gym(problem: Problem, answer: str) -> Grade:
    if problem.entry is None:
        raise ValueError(f"{problem.where}: grader {problem.grader!r} needs the problem's `entry`, which is missing")
    # The verifier of gsm_symbolic overlooks a minus sign and stops at a comma, so a number is compared here first.
    if plain_number(problem.answer) is not None:
        grade_as_number = grade_number(problem.answer, answer)
        if grade_as_number is not Grade.CORRECT:
            return grade_as_number
        answer = plain_number(answer) or answer
    score = _verifier(problem.grader.removeprefix(REASONING_GYM_PREFIX))
    return Grade.CORRECT if score(answer, json.loads(problem.entry)) == 1.0 else Grade.WRONG


@cache
def _verifier(dataset: str) -> Callable[[str, dict], float]:
    """The data set's `score_answer`, if it is one that only compares."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS, ProceduralDataset
    except ImportError as error:
        raise ImportError("reasoning_gym graders need the package: pip install reasoning-gym") from error
    if dataset not in DATASETS:
        raise ValueError(f"reasoning-gym has no data set {dataset!r}: is the problem from another version of it?")
    is_text_comparison = DATASETS[dataset][0].score_answer is ProceduralDataset.score_answer
    if not is_text_comparison and dataset not in NUMBER_VERIFIERS:
        known = ", ".join(sorted(NUMBER_VERIFIERS))
        raise ValueError(
            f"the verifier of reasoning-gym's {dataset!r} may evaluate or parse model text, so it is not run. "
            f"Take a data set with the default verifier, or one of {known}; after reading "
            "its score_answer, add it to NUMBER_VERIFIERS of posttrain/rewards/grade.py"
        )
    # reasoning-gym annotates a function without arguments.
    return reasoning_gym.get_score_answer_fn(dataset)  # pyright: ignore[reportReturnType]
