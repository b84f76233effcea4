"""Final answers that are plain numbers: how they are found, read and compared, without evaluating anything.

The answer is what follows `####` on the completion's last line that is not blank. A completion without one is
UNPARSED, never guessed at from other numbers in the text.
"""

from __future__ import annotations

import re
from decimal import Decimal

from posttrain.schema import Grade

ANSWER_MARK = "####"
MAX_CHARACTERS = 10_000  # of the completion's end; the answer stands there, and the rest is not looked at

# ASCII digits only: int() and Decimal() would also read digits of other scripts, which no gold answer has.
_NUMBER = re.compile(r"\$?([+\-\u2212]?)\$?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)\$?\.?")


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


def grade_number(gold: str, answer: str) -> Grade:
    """CORRECT when the answer is exactly the gold number (1,800 = 1800.00), UNPARSED when it is no plain number.

    Raises ValueError when the gold answer is none.
    """
    gold_number, number = plain_number(gold), plain_number(answer)
    if gold_number is None:
        raise ValueError(f"the gold answer is {gold!r}, this grader needs a plain number")
    if number is None:
        return Grade.UNPARSED
    return Grade.CORRECT if Decimal(number) == Decimal(gold_number) else Grade.WRONG
