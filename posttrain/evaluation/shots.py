"""Solved problems that stand before each question, drawn from a training split the way lm-eval draws them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from posttrain.data.fields import Fields
from posttrain.data.problems import PromptTemplate, find_data, first_at_hand
from posttrain.data.sources import OnBadRow, RowsError, read_rows
from posttrain.schema import Problem

Solved = tuple[str, str]  # a question and its worked answer, as the split has them


@dataclass(frozen=True, slots=True)
class Shots:
    """How many, of which pool, in which order: together with the pool's hash this fixes every prompt."""

    n: int
    sources: tuple[str, ...]  # rows {question, answer} of a training split: the first on disk, else the last
    sha256: str  # of the questions and answers of the pool, see pool_sha256
    seed: int


def with_shots(problems: Sequence[Problem], shots: Shots, template: PromptTemplate) -> list[Problem]:
    """The problems, each after `shots.n` solved ones: its prompt, a space, its answer and an empty line for each shot.

    Every problem has shots of its own: `random.Random(seed).sample(pool, n)`, drawn once for each problem in their
    order. That is lm-eval 0.4's default sampler in one process, so the text is lm-eval's byte for byte. Raises
    ValueError when the pool is not at hand, is not the one that `shots.sha256` names, or when a problem is its own
    shot.
    """
    pool = _read_pool(shots)
    rng = random.Random(shots.seed)
    put = []
    for problem in problems:
        drawn = [(template(question), answer) for question, answer in rng.sample(pool, shots.n)]
        if problem.prompt in (prompt for prompt, _ in drawn):
            raise ValueError(
                f"{problem.where} is among its own shots: the problems are of the split that shots come from; "
                "evaluate a test split, or choose a protocol without shots"
            )
        before = "".join(f"{prompt} {answer}\n\n" for prompt, answer in drawn)
        put.append(replace(problem, prompt=before + problem.prompt))
    return put


def pool_sha256(pool: Sequence[Solved]) -> str:
    """Of the texts alone, so that a file and the same rows of the Hub agree."""
    return hashlib.sha256(json.dumps(pool).encode()).hexdigest()


def _read_pool(shots: Shots) -> list[Solved]:
    source = first_at_hand(shots.sources)
    try:
        pool = list(read_rows(find_data(source), _parse_solved, on_bad_row=OnBadRow.ERROR).rows)
    except RowsError as error:
        raise ValueError(
            f"this protocol's {shots.n} shots come from a training split ({' or '.join(shots.sources)}), which was "
            f"not read: put the file below POSTTRAIN_DATA, or choose a protocol without shots\n{error}"
        ) from error
    if pool_sha256(pool) != shots.sha256:
        raise ValueError(
            f"{source} holds {len(pool):,} rows that hash to {pool_sha256(pool)[:12]}, this protocol's shots are of "
            f"rows that hash to {shots.sha256[:12]}: other prompts would go by one name; get the split as its card "
            "in data/ says"
        )
    return pool


def _parse_solved(obj: object, where: str) -> Solved:
    fields = Fields(obj, where)
    solved = fields.text("question"), fields.text("answer")
    fields.raise_faults()
    return solved
