"""Word problems of two steps in GSM8K's form, made here, for a small pretrained model where GSM8K is out of reach."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass

Operation = Callable[[int, int], int]
SIGN: dict[Operation, str] = {operator.add: "+", operator.sub: "-", operator.mul: "*"}
NAMES = ("Ada", "Ben", "Chen", "Dina", "Emil", "Fatima", "Goran", "Hana")
THINGS = ("apples", "books", "coins", "marbles", "pencils", "shells", "stamps", "tickets")


@dataclass(frozen=True, slots=True)
class Story:
    """A text about a, b and c whose answer is second(first(a, b), c)."""

    text: str
    first: Operation
    second: Operation


STORIES = (
    Story(
        "{name} has {a} {things} and finds {b} more. Then {name} gives {c} of them away. How many are left?",
        operator.add,
        operator.sub,
    ),
    Story(
        "{name} buys {a} boxes with {b} {things} in each. {c} {things} are lost. How many {things} are left?",
        operator.mul,
        operator.sub,
    ),
    Story(
        "{name} collects {a} {things} a day for {b} days, and {c} more on the last day. How many is that in all?",
        operator.mul,
        operator.add,
    ),
    Story(
        "{a} {things} are on the table and {b} in the drawer. {name} brings {c} more. How many {things} are there?",
        operator.add,
        operator.add,
    ),
)


def word_problems(n: int, *, seed: int) -> list[dict[str, str]]:
    """n different rows {question, answer}; the answer has a line for each step and ends in `#### <number>`."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < n:
        row = _word_problem(rng)
        rows[row["question"]] = row
    return list(rows.values())


def _word_problem(rng: random.Random) -> dict[str, str]:
    story = rng.choice(STORIES)
    a, b = (rng.randint(2, 9) for _ in range(2))
    between = story.first(a, b)
    c = rng.randint(1, min(between - 1, 9))
    answer = story.second(between, c)
    lines = (
        f"{a} {SIGN[story.first]} {b} = {between}",
        f"{between} {SIGN[story.second]} {c} = {answer}",
        f"#### {answer}",
    )
    question = story.text.format(name=rng.choice(NAMES), things=rng.choice(THINGS), a=a, b=b, c=c)
    return {"question": question, "answer": "\n".join(lines)}
