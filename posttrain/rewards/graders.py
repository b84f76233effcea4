"""The graders by name: how each finds the answer in a completion, and when it takes it for the gold one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from posttrain.boxed import last_boxed
from posttrain.rewards.final_number import MAX_CHARACTERS, final_answer, grade_number
from posttrain.rewards.lm_eval import exact_match, flexible_extract, strict_match
from posttrain.rewards.math_text import comparable, exact_value, is_too_large, math_answer
from posttrain.rewards.reference_extraction import decide_by_reference, reference_answer, verify_by_reference
from posttrain.rewards.symbolic import decide_math, verify_by_math_verify
from posttrain.schema import GRADER_NAMES, Grade


@dataclass(frozen=True, slots=True)
class Grader:
    """One protocol of grading.

    `extract` and `decide` take time linear in the text and run anywhere. `verify` may take any time and memory: a
    GradingPool runs it in a process that it can kill. A grader without it always decides.
    """

    extract: Callable[[str], str | None]  # the answer in a completion; None: UNPARSED
    decide: Callable[[str, str], Grade | None]  # of the gold answer and the extracted one; None: ask `verify`
    verify: Callable[[str, str], Grade] | None = None

    def __call__(self, gold: str, completion: str) -> Grade:
        """The grade of a completion, found in this process; without limits where `verify` is needed."""
        answer = self.extract(completion)
        grade = self.first_grade(gold, answer)
        if grade is not None:
            return grade
        assert self.verify is not None and answer is not None  # first_grade is None for nothing else
        return self.verify(gold, answer)

    def first_grade(self, gold: str, answer: str | None) -> Grade | None:
        """The grade where bounded work settles it; None where `verify` is needed.

        An answer over a cap of size is never given to `verify`: TIMEOUT.
        """
        if answer is None:
            return Grade.UNPARSED
        if self.verify is not None and answer != gold and is_too_large(answer):
            return Grade.TIMEOUT
        return self.decide(gold, answer)


def _boxed_answer(completion_text: str) -> str | None:
    return last_boxed(completion_text[-MAX_CHARACTERS:]) or None


def _decide_boxed(gold: str, answer: str) -> Grade:
    """Exact numbers where the gold answer is one, else equal text up to spacing and sizes."""
    gold_value = exact_value(gold)
    if gold_value is None:
        return Grade.CORRECT if comparable(gold) == comparable(answer) else Grade.WRONG
    value = exact_value(answer)
    if value is None:
        return Grade.UNPARSED
    return Grade.CORRECT if value == gold_value else Grade.WRONG


_STRICT_NUMBER = Grader(final_answer, grade_number)
GRADERS: Mapping[str, Grader] = {
    "final_number": _STRICT_NUMBER,  # the name that problem rows use
    "gsm8k_strict": _STRICT_NUMBER,
    "lm_eval_strict": Grader(strict_match, exact_match),
    "lm_eval_flexible": Grader(flexible_extract, exact_match),
    "boxed": Grader(_boxed_answer, _decide_boxed),
    "math_verify": Grader(math_answer, decide_math, verify_by_math_verify),
    "reference_extraction": Grader(reference_answer, decide_by_reference, verify_by_reference),
}
assert tuple(GRADERS) == GRADER_NAMES  # the schema names them for the rows, which may not import this package


def grader_named(name: str) -> Grader:
    """The grader of that name. Raises ValueError for an unknown one."""
    if name not in GRADERS:
        known = ", ".join(map(repr, GRADERS))
        raise ValueError(f"grader is {name!r}, needs {known}, 'reasoning_gym:<dataset>' or 'picture:<folder>'")
    return GRADERS[name]
