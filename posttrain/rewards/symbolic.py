r"""Mathematics answers compared by math-verify: the verifier of the grader `math_verify`.

math-verify has no limit of its own here: what it does to an answer may take any time and memory. Only the processes of
a GradingPool call it. It is asked for LaTeX alone: its reader of plain expressions goes through sympy's parse_expr,
which evaluates Python, and no answer is ever given to that.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from posttrain.rewards.math_text import comparable, exact_value
from posttrain.rewards.two_stage_parser import install_two_stage_parser
from posttrain.schema import Grade

# Letters take the values 0.7312, 1.1434, ...; formulas that differ by more than this share there are not equal.
POINT_START, POINT_STEP, POINT_TOLERANCE = 0.7312, 0.4122, 1e-3
COMMON_FORMS = (
    r"\frac{1}{2}",
    r"-2x^2+3x-\sqrt{2}",
    r"x^{10}-\frac{3}{4}x^3y+7",
    r"\left(1,\frac{\pi}{2}\right]",
    r"(-\infty,-4)\cup(-4,6)\cup(6,\infty)",
    r"\begin{pmatrix}1&-2\\3&\frac{1}{2}\end{pmatrix}",
    r"y=-\frac{1}{2}x^2+4x-6",
    r"1,-1,3+2i,-\sqrt{5}",
    r"\frac{3+\sqrt{17}}{2}",
    r"120^\circ",
    r"45\%",
    r"\text{Evelyn}",
    r"3\frac{1}{8}",
    r"x\ge\frac{2}{3}",
    r"\sin^2 x+\log_2 3",
    r"2_{5}",
    r"12\text{ cm}",
)
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
    if read_gold and read_answer and _differ_at_a_point(read_gold[0], read_answer[0]):
        return Grade.WRONG
    if verify(read_gold, read_answer, timeout_seconds=None):
        return Grade.CORRECT
    return Grade.UNPARSED if _is_text(read_answer) and not _is_text(read_gold) else Grade.WRONG


def warm_up() -> None:
    """Load math-verify and fill its parser's tables, which grow with what they see, before answers wait for it."""
    install_two_stage_parser()
    for latex in COMMON_FORMS:
        verify_by_math_verify(latex, r"\frac{2\pi}{4}")


def _read(latex: str) -> list[Any]:
    """What math-verify reads in LaTeX: sympy objects, then the text; the text alone where it is no mathematics."""
    from math_verify import parse

    boxed = rf"\boxed{{{latex.strip().removesuffix('.')}}}"  # with the full stop, 5. is no number to it
    return parse(boxed, _latex_only(), parsing_timeout=None)  # pyright: ignore[reportArgumentType]


@cache
def _latex_only() -> tuple[Any, ...]:
    from math_verify import LatexExtractionConfig

    return (LatexExtractionConfig(boxed_match_priority=0),)


def _differ_at_a_point(gold: Any, answer: Any) -> bool:
    """Whether both are formulas with other values where their letters have certain values: then they are not equal.

    math-verify would find the same, after trying to simplify the difference. False where this does not tell: it rounds
    decimals, takes 9% for 9 and the word abc for a·b·c.
    """
    from sympy import Expr, MatrixBase, Symbol, UnevaluatedExpr

    formulas = (gold, answer)
    if any(not isinstance(f, Expr) or isinstance(f, (MatrixBase, Symbol)) or f.has(UnevaluatedExpr) for f in formulas):
        return False
    letters = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {letter: POINT_START + POINT_STEP * index for index, letter in enumerate(letters)}
    try:
        gold_value, value = (complex(f.subs(point).evalf(15)) for f in formulas)
        difference = abs(gold_value - value)
        return math.isfinite(difference) and difference > POINT_TOLERANCE * max(1.0, abs(gold_value))
    except MemoryError:
        raise
    except Exception:  # no number there, or sympy gives up in one of its ways: this does not tell
        return False


def _is_text(read: list[Any]) -> bool:
    return all(isinstance(value, str) for value in read)
