"""The two filters of lm-eval's `gsm8k` task (task version 3.0, lm-eval 0.4.13), from their documented rules.

strict-match: the first match of `#### (-?[0-9.,]+)`. flexible-extract: the last match of
`(-?[$0-9.,]{2,})|(-?[0-9]+)`. Both are compared as text with what follows `#### ` in the gold solution, after commas,
dollar signs and one full stop at the end are removed, so 18.0 is not 18, and "18.." is not 18 either. Where lm-eval
writes "[invalid]" and counts a wrong answer, the grade here is UNPARSED.

The whole completion is searched, whatever its length, since the first and the last match of a part may be others.
"""

from __future__ import annotations

import re
from collections import deque

from posttrain.schema import Grade

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def strict_match(completion_text: str) -> str | None:
    """What lm-eval's strict-match filter takes for the answer; None where it writes [invalid]."""
    found = _STRICT.search(completion_text)
    return found[1] if found else None


def flexible_extract(completion_text: str) -> str | None:
    """What lm-eval's flexible-extract filter takes for the answer; None where it writes [invalid]."""
    last = deque(_FLEXIBLE.finditer(completion_text), maxlen=1)
    return last[0][0] if last else None


def exact_match(gold: str, answer: str) -> Grade:
    """CORRECT when both are the same text once what the task ignores is removed."""
    return Grade.CORRECT if _compared(answer) == _compared(gold) else Grade.WRONG


def _compared(text: str) -> str:
    return text.replace(",", "").replace("$", "").removesuffix(".").lower()
