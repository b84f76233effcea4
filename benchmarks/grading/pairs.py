"""Gold answers and completions from the test splits of GSM8K and MATH: own solutions of problems, or shuffled ones."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.data.problems import find_data, read_problems

SOLUTION_COLUMN = {"gsm8k/test.jsonl": "answer", "math/math_test.jsonl": "solution"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A completion to grade."""

    task_id: str
    gold: str
    completion: str


def own_pairs(source: str) -> list[Pair]:
    """Every problem with its own gold solution."""
    rows = Path(find_data(source)).read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(row)[SOLUTION_COLUMN[source]] for row in rows]
    problems = read_problems(source, limit=None)
    return [Pair(p.task_id, p.answer, solution) for p, solution in zip(problems, solutions, strict=True)]


def shuffled_pairs(pairs: Sequence[Pair], *, seed: int) -> list[Pair]:
    """Every problem with the gold solution of a problem drawn at random, each solution used once."""
    completions = [pair.completion for pair in pairs]
    random.Random(seed).shuffle(completions)
    return [Pair(pair.task_id, pair.gold, text) for pair, text in zip(pairs, completions, strict=True)]


def share_of_equal_pairs(golds: Sequence[str]) -> float:
    """How often two different problems drawn at random have the same gold answer: sum n_a (n_a - 1) / (n (n - 1))."""
    n = len(golds)
    return sum(count * (count - 1) for count in Counter(golds).values()) / (n * (n - 1))
