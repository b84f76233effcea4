r"""Mathematics answers compared by math-verify: the verifier of the grader `math_verify`.

math-verify has no limit of its own here: what it does to an answer may take any time and memory. Only the processes of
a GradingPool call it. It is asked for LaTeX alone: its reader of plain expressions goes through sympy's parse_expr,
which evaluates Python, and no answer is ever given to that.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from posttrain.rewards.math_text import comparable, exact_value
from posttrain.schema import Grade

INSTALL_HINT = "this grader needs math-verify: pip install 'posttrain[math]'"


def decide_math(gold: str, answer: str) -> Grade | None:
    """The grade where text or plain numbers settle it; None where it takes computer algebra.

    Equal text is CORRECT, and so are equal numbers. Integers and fractions that differ are WRONG; a decimal that
    differs is left to math-verify, which rounds.
    """
    if comparable(gold) == comparable(answer):
        return Grade.CORRECT
    gold_value, value = exact_value(gold), exact_value(answer)
    if gold_value is None or value is None:
        return None
    if gold_value == value:
        return Grade.CORRECT
    return None if "." in gold or "." in answer else Grade.WRONG


def verify_by_math_verify(gold: str, answer: str) -> Grade:
    """What math-verify says of an answer; UNPARSED where it cannot read it as mathematics and the gold answer is some.

    Needs a process that may be killed.
    """
    from math_verify import verify

    read_gold, read_answer = _read(gold), _read(answer)
    if verify(read_gold, read_answer, timeout_seconds=None):
        return Grade.CORRECT
    return Grade.UNPARSED if _is_text(read_answer) and not _is_text(read_gold) else Grade.WRONG


def warm_up() -> None:
    """Load math-verify and build its parser's tables, so that the first answer is not charged for it."""
    for latex in (r"\frac{1}{2}", r"x^2+3x-\sqrt{2}", r"\left(1,\infty\right)", r"\begin{pmatrix}1\\2\end{pmatrix}"):
        verify_by_math_verify(latex, r"\frac{2\pi}{4}")


def _read(latex: str) -> list[Any]:
    """What math-verify reads in LaTeX: sympy objects, then the text; the text alone where it is no mathematics."""
    from math_verify import parse

    boxed = rf"\boxed{{{latex}}}"
    return parse(boxed, _latex_only(), parsing_timeout=None)  # pyright: ignore[reportArgumentType]


@cache
def _latex_only() -> tuple[Any, ...]:
    from math_verify import LatexExtractionConfig

    return (LatexExtractionConfig(boxed_match_priority=0),)


def _is_text(read: list[Any]) -> bool:
    return all(isinstance(value, str) for value in read)
