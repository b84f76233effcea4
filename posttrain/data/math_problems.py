r"""Rows of MATH (Hendrycks et al. 2021, arXiv 2103.03874) and of its subset MATH-500, as problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from posttrain.boxed import last_boxed
from posttrain.data.fields import Fields
from posttrain.schema import Problem

LEVEL = re.compile(r"(?:Level )?([1-5?])")
UNKNOWN_LEVEL = "?"  # two problems of the training split have it
LEVEL_MEANING = '"Level 1" to "Level 5", "Level ?" or a number from 1 to 5'


def is_math_row(obj: object) -> bool:
    """Whether a JSON object is a row of MATH."""
    return isinstance(obj, Mapping) and "problem" in obj and "solution" in obj


def parse_math_problem(obj: object, where: str, *, split: str, template: Callable[[str], str]) -> Problem:
    r"""One row {problem, solution, level, type or subject}, with or without answer and unique_id.

    The gold answer is the row's answer or, without one, the solution's last \boxed{}. The task id is `math/` and the
    unique id, which MATH-500 shares with MATH, or `math/<split>/<row>`. Tags: subject and level. Raises RowError.
    """
    fields = Fields(obj, where)
    question, solution = fields.text("problem"), fields.text("solution")
    answer = fields.optional_text("answer") or last_boxed(solution)
    if answer is None and fields.is_sound("solution"):
        fields.fault("solution", rf"ends in {solution[-30:]!r}, expected a \boxed{{}} answer, or a column 'answer'")
    subject = fields.text("subject" if fields.has("subject") else "type", "the subject, as 'type' or 'subject'")
    row_id = fields.optional_text("unique_id") or f"{split}/{where.rpartition(':')[2]}"
    level = _level(fields)
    fields.raise_faults()
    return Problem(
        where=where,
        task_id=f"math/{row_id}",
        prompt=template(question),
        answer=answer or "",
        grader="math_verify",
        tags=(("subject", subject), ("level", level)),
    )


def _level(fields: Fields) -> str:
    """The level as one character; MATH writes "Level 3", MATH-500 writes 3."""
    text = f"{fields.number('level'):g}" if fields.is_number("level") else fields.text("level", LEVEL_MEANING)
    level = LEVEL.fullmatch(text)
    if level is None and fields.is_sound("level"):
        fields.fault("level", f"got {text!r}, expected {LEVEL_MEANING}")
    return level[1] if level else UNKNOWN_LEVEL
