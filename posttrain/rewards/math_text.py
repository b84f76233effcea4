r"""Where the answer of a mathematics completion stands, and what of it can be compared without computer algebra.

Everything here takes time linear in the text, so it runs in the calling process.
"""

from __future__ import annotations

import math
import re
from collections import deque
from fractions import Fraction

from posttrain.boxed import last_boxed
from posttrain.rewards.final_number import MAX_CHARACTERS, plain_number

MAX_ANSWER_CHARACTERS = 1_000  # the longest gold answer of MATH has 81
MAX_DIGITS = 100  # in a row
MAX_EXPONENT = 10_000  # the largest in MATH is 2007
MAX_TOWER = 4  # exponents upon each other
MAX_NESTING = 50  # of brackets

ANSWER_PHRASE = re.compile(r"answer(?: is:?|:)", re.IGNORECASE)
# No alternative can be read in two ways, and an unclosed formula ends at the next that opens: linear time.
FORMULA = re.compile(
    r"(?<!\\)\$\$(?P<display>(?:\\.|[^$\\])+)\$\$|(?<!\\)\$(?P<inline>(?:\\.|[^$\\\n])+)\$"
    r"|\\\((?P<round>(?:(?!\\[()]).)*)\\\)|\\\[(?P<square>(?:(?!\\[\[\]]).)*)\\\]",
    re.DOTALL,
)
PLAIN_VALUE = re.compile(r"[-\u2212]?\$?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)(?:\s?/\s?[0-9]+)?%?")
_VALUE = re.compile(f"{FORMULA.pattern}|{PLAIN_VALUE.pattern}", re.DOTALL)

_LONG_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_EXPONENT = re.compile(r"\^[\s{(+-]*([0-9]+)(?:[\s})]*\^[\s{(+-]*([0-9]+))?")
_TOWER = re.compile(rf"(?:\^[\s{{(+-]*[0-9]+[\s}})]*){{{MAX_TOWER}}}")

_SPACE = re.compile(r"\\[!,;: ]|\\q?quad\b|~|\s+")
_SIZE = re.compile(r"\\(?:left|right|displaystyle)\b\s*")
_EDGE_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\frac([0-9])([0-9])(?![0-9])")
_FRACTION = re.compile(r"(-?)\\frac\{(-?[0-9]+)\}\{([0-9]+)\}|(-?)([0-9]+)/([0-9]+)")


def math_answer(completion_text: str) -> str | None:
    r"""The answer of a completion, as LaTeX or plain text; None where nothing looks like one.

    The last box; else what follows the last "answer is" or "answer:" on its line; else the last formula or number.
    A formula stands in $...$, $$...$$, \(...\) or \[...\]. Only the end of a long text is read.
    """
    text = completion_text[-MAX_CHARACTERS:]
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed or None
    phrase = _last(ANSWER_PHRASE, text)
    if phrase is not None:
        return _stated(text[phrase.end() :].partition("\n")[0])
    value = _last(_VALUE, text)
    return None if value is None else _content(value)


def comparable(latex: str) -> str:
    r"""LaTeX without what changes no meaning: spacing, sizes of brackets and fractions, \text, a full stop."""
    text = latex.strip().strip("$").replace("\u2212", "-").replace("{,}", ",")
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\$", "$").replace(r"\%", "%")
    text = _SIZE.sub("", _TEXT.sub(r"\1", text))
    # \! and \, group the digits of a number; other spaces part words.
    text = _SPACE.sub(lambda space: "" if space[0] in (r"\!", r"\,") else " ", text)
    return _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", _EDGE_SPACE.sub("", text.strip())).removesuffix(".")


def exact_value(latex: str) -> Fraction | None:
    """The number that an integer, decimal or fraction of integers is; None for anything else and beyond MAX_DIGITS."""
    text = comparable(latex)
    if len(text) > MAX_DIGITS:
        return None
    number = plain_number(text)
    if number is not None:
        return Fraction(number)
    found = _FRACTION.fullmatch(text)
    if found is None:
        return None
    sign, numerator, denominator = found.group(1, 2, 3) if found[2] else found.group(4, 5, 6)
    if int(denominator) == 0:
        return None
    return Fraction(int(numerator), int(denominator)) * (-1 if sign else 1)


def is_too_large(answer: str) -> bool:
    """Whether an answer passes a cap of length, digits, exponents or nesting, and is not given to computer algebra."""
    if len(answer) > MAX_ANSWER_CHARACTERS or _LONG_DIGITS.search(answer) or _TOWER.search(answer):
        return True
    return _has_large_exponent(answer) or _nesting(answer) > MAX_NESTING


def _has_large_exponent(answer: str) -> bool:
    for exponent in _EXPONENT.finditer(answer):
        base, power = int(exponent[1]), int(exponent[2] or 1)
        if power * math.log(max(base, 1)) > math.log(MAX_EXPONENT):
            return True
    return False


def _nesting(answer: str) -> int:
    depth = deepest = 0
    for char in answer:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _stated(line: str) -> str | None:
    """The answer in what follows "answer is": its first formula, else its LaTeX, its first number, or its words."""
    line = line.strip(" :*.")
    formula = FORMULA.search(line)
    if formula is not None:
        return _content(formula)
    value = None if "\\" in line else PLAIN_VALUE.search(line)
    return value[0] if value else line or None


def _content(value: re.Match[str]) -> str:
    """A formula without its delimiters; a plain value as it is."""
    return (value[value.lastgroup] if value.lastgroup else value[0]).strip()


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None
