"""Grading a completion against the gold answer of its problem.

The answer is what follows `####` on the completion's last line that is not blank. A completion without one is
UNPARSED, never guessed at from other numbers in the text. Model text is compared, never evaluated: graders whose
verifier would evaluate it are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache

from posttrain.schema import Grade, Problem

ANSWER_MARK = "####"
MAX_CHARACTERS = 10_000  # of the completion's end; the answer stands there, and the rest is not looked at

REASONING_GYM_PREFIX = "reasoning_gym:"
# Verifiers of their own that compare a number and do nothing else, as read in reasoning-gym 0.1.25. All others must
# be the package's default, which compares text.
NUMBER_VERIFIERS = frozenset({"chain_sum", "gsm_symbolic", "products"})

# ASCII digits only: int() and Decimal() would also read digits of other scripts, which no gold answer has.
_NUMBER = re.compile(r"\$?([+\-\u2212]?)\$?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)\$?\.?")


def grade(problem: Problem, completion_text: str) -> Grade:
    """Grade one completion by the problem's grader.

    `final_number`: CORRECT when the answer is exactly the gold number (1,800 = 1800.00).
    `reasoning_gym:<dataset>`: CORRECT when the data set's own verifier gives 1.0, and, where the gold answer is a
    number, the answer is that number too. Raises ValueError when the problem itself cannot be graded.
    """
    answer = final_answer(completion_text)
    if answer is None:
        return Grade.UNPARSED
    if problem.grader == "final_number":
        return _grade_number(problem, answer)
    if problem.grader.startswith(REASONING_GYM_PREFIX):
        return _grade_by_reasoning_gym(problem, answer)
    raise ValueError(
        f"{problem.where}: grader is {problem.grader!r}, needs 'final_number' or 'reasoning_gym:<dataset>'"
    )


def final_answer(completion_text: str) -> str | None:
    """What follows the last `####` of the last line that is not blank; None without one or with nothing after it."""
    lines = completion_text[-MAX_CHARACTERS:].rstrip().splitlines()
    _, mark, answer = lines[-1].rpartition(ANSWER_MARK) if lines else ("", "", "")
    return answer.strip() or None if mark else None


def plain_number(text: str) -> str | None:
    """The number that `text` is, as sign, digits and point alone; None where it is anything more or less.

    A dollar sign, thousands commas in their places and one full stop at the end are dropped. Units, percent signs,
    exponents, fractions and digits of other scripts are not read.
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    sign = "-" if found[1] in ("-", "\u2212") else ""
    return sign + found[2].replace(",", "")


def _grade_number(problem: Problem, answer: str) -> Grade:
    gold, number = plain_number(problem.answer), plain_number(answer)
    if gold is None:
        raise ValueError(f"{problem.where}: the gold answer is {problem.answer!r}, final_number needs a plain number")
    if number is None:
        return Grade.UNPARSED
    return Grade.CORRECT if Decimal(number) == Decimal(gold) else Grade.WRONG


def _grade_by_reasoning_gym(problem: Problem, answer: str) -> Grade:
    if problem.entry is None:
        raise ValueError(f"{problem.where}: grader {problem.grader!r} needs the problem's `entry`, which is missing")
    # The verifier of gsm_symbolic overlooks a minus sign and stops at a comma, so a number is compared here first.
    if plain_number(problem.answer) is not None:
        grade_as_number = _grade_number(problem, answer)
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
