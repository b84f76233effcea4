r"""The grading rules of the DeepSeekMath evaluation scripts, by which the OREO paper graded MATH, written anew.

Extraction, in this order: what stands in "final answer is $...$. I hope"; the last box; the text after "he answer is";
the last fenced `output` block; the last number once commas are removed.

Equality, in this order: numbers that differ by less than 1e-3, also after one of them is multiplied or divided by 100;
equal text; intervals, tuples and matrices element by element; equal formulas by sympy, of which LaTeX is read by
math-verify's parser and nothing is evaluated as Python.

Differs from the scripts: a gold answer is one string, so one answer is read where they take the last k boxes of a
problem with k gold answers; an answer that is not read is UNPARSED, not wrong; the comparison by sympy ends with the
time limit of the pool as TIMEOUT, where theirs ends after 1 s as wrong.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from posttrain.boxed import last_boxed
from posttrain.rewards.final_number import MAX_CHARACTERS
from posttrain.rewards.math_text import comparable
from posttrain.schema import Grade

TOLERANCE = 1e-3
PHRASE = "he answer is"

_MINERVA = re.compile(r"final answer is \$((?:(?!final answer is \$).)*?)\$\. I hope", re.DOTALL)
_OUTPUT_BLOCK = re.compile(r"```output\n((?:(?!```).)*)```", re.DOTALL)
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?|-?\.[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)%?")
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_BRACKETS = {"(": ")", "[": "]"}
_MAX_FLOAT_CHARACTERS = 300  # float() is exact enough on all of these and overflows on none


def reference_answer(completion_text: str) -> str | None:
    """The answer that the reference's order of extraction finds; None where there is not even a number."""
    text = completion_text[-MAX_CHARACTERS:]
    minerva = _MINERVA.search(text)
    if minerva is not None:
        return minerva[1].strip() or None
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed or None
    _, phrase, stated = text.rpartition(PHRASE)
    if phrase:
        return stated.strip().partition("\n")[0].strip(" :.$") or None
    blocks = _OUTPUT_BLOCK.findall(text)
    if blocks:
        return blocks[-1].strip() or None
    numbers = _NUMBER.findall(text.replace(",", ""))
    return numbers[-1] if numbers else None


def decide_by_reference(gold: str, answer: str) -> Grade | None:
    """The grade where the rules before sympy settle it; None where sympy has to be asked."""
    if _is_equal(gold, answer):
        return Grade.CORRECT
    return Grade.WRONG if _number(gold) is not None and _number(answer) is not None else None


def verify_by_reference(gold: str, answer: str) -> Grade:
    """The grade by all rules, sympy included. Needs a process that may be killed."""
    decided = decide_by_reference(gold, answer)
    if decided is not None:
        return decided
    gold_parts, parts = _parts(gold), _parts(answer)
    if gold_parts is None or parts is None:
        return _formula_grade(gold, answer)
    if gold_parts[0] != parts[0] or len(gold_parts) != len(parts):
        return Grade.WRONG
    grades = [verify_by_reference(g, a) for g, a in zip(gold_parts[1:], parts[1:], strict=True)]
    if all(grade is Grade.CORRECT for grade in grades):
        return Grade.CORRECT
    return Grade.WRONG if Grade.WRONG in grades else Grade.UNPARSED


def _is_equal(gold: str, answer: str) -> bool:
    gold_number, number = _number(gold), _number(answer)
    if gold_number is not None and number is not None:
        return any(abs(number - scaled) < TOLERANCE for scaled in (gold_number, gold_number / 100, gold_number * 100))
    if comparable(gold) == comparable(answer):
        return True
    gold_parts, parts = _parts(gold), _parts(answer)
    if gold_parts is None or parts is None or gold_parts[0] != parts[0] or len(gold_parts) != len(parts):
        return False
    return all(_is_equal(g, a) for g, a in zip(gold_parts[1:], parts[1:], strict=True))


def _number(text: str) -> float | None:
    plain = comparable(text).replace(",", "").replace("$", "")
    if len(plain) > _MAX_FLOAT_CHARACTERS or _FLOAT.fullmatch(plain) is None:
        return None
    return float(plain.removesuffix("%"))


def _parts(text: str) -> list[str] | None:
    """The elements of an interval, tuple or matrix after a word for its shape; None for anything else."""
    plain = comparable(text)
    matrix = _MATRIX.fullmatch(plain)
    if matrix is not None:
        rows = [row.split("&") for row in matrix[2].removesuffix(r"\\").split(r"\\")]
        return [f"{len(rows)} rows", *(cell for row in rows for cell in row)]
    if len(plain) < 2 or plain[0] not in _BRACKETS or plain[-1] not in _BRACKETS.values():
        return None
    elements = _split_at_commas(plain[1:-1])
    return None if len(elements) < 2 else [plain[0] + plain[-1], *elements]


def _split_at_commas(text: str) -> list[str]:
    """The parts between commas that stand in no bracket."""
    depth = 0
    cuts = [-1]
    for index, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            cuts.append(index)
    return [text[start + 1 : end] for start, end in pairwise([*cuts, len(text)])]


def _formula_grade(gold: str, answer: str) -> Grade:
    gold_formula, formula = _read(gold), _read(answer)
    if gold_formula is None:
        return Grade.WRONG  # the gold answer is text, and the texts differ
    if formula is None:
        return Grade.UNPARSED
    return Grade.CORRECT if _is_same_formula(gold_formula, formula) else Grade.WRONG


def _read(latex: str) -> Any:
    from latex2sympy2_extended import NormalizationConfig, latex2sympy

    config = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    try:
        return latex2sympy(latex.strip().removesuffix("."), normalization_config=config)
    except MemoryError:
        raise
    except Exception:  # of a parser, on any text: it is no formula
        return None


def _is_same_formula(gold: Any, formula: Any) -> bool:
    from sympy import N, simplify

    try:
        difference = simplify(gold - formula)
        return difference == 0 or bool(abs(N(difference)) < TOLERANCE)
    except MemoryError:
        raise
    except Exception:  # sets, relations and booleans have no difference, a formula with letters no size
        return bool(gold == formula)
