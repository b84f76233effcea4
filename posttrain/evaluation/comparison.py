"""What records say about methods: an accuracy with its interval, and two methods paired on the same problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.evaluation.records import MethodBudget, group_records
from posttrain.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    mcnemar_p,
    seed_interval,
    wilson_interval,
)
from posttrain.schema import AnswerRecord, FinishReason, Grade

N_IDS_SHOWN = 3


class ComparisonError(ValueError):
    """Two methods that cannot be paired; the message says which problems or seeds differ."""


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method at one budget, all its seeds together."""

    method: str
    budget: int
    n_problems: int  # different problems
    accuracy: Interval  # Wilson for one answer per problem, else bootstrap over problems
    by_seed: tuple[tuple[int, float], ...]  # (seed, accuracy), seeds rising
    over_seeds: Interval | None  # t interval over seeds; None for a single seed
    tokens_per_answer: float  # discarded branches included
    n_answers: int
    n_unparsed: int
    n_timeout: int
    n_cut: int  # ended by the token budget


@dataclass(frozen=True, slots=True)
class SeedDifference:
    """a − b on one seed."""

    seed: int
    difference: float
    n_only_a: int  # problems that only a solved
    n_only_b: int
    mcnemar_p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracy of a minus accuracy of b on the same problems and seeds."""

    a: MethodBudget
    b: MethodBudget
    n_problems: int
    difference: Interval  # paired bootstrap over problems: what other problems of this kind may give
    over_seeds: Interval | None  # t interval over the seeds' differences; None for a single seed
    by_seed: tuple[SeedDifference, ...]

    @property
    def is_identical(self) -> bool:
        """Whether both solved the same problems under every seed, which leaves the bootstrap nothing to resample."""
        return not any(s.n_only_a or s.n_only_b for s in self.by_seed)


def summarise(records: Sequence[AnswerRecord], *, bootstrap_seed: int = 0) -> MethodSummary:
    """Accuracy, spread over seeds, tokens and failures of one method at one budget."""
    method, budget = _only_method(records)
    by_task: dict[str, list[bool]] = defaultdict(list)
    by_seed: dict[int, list[bool]] = defaultdict(list)
    for record in records:
        by_task[record.task_id].append(_is_correct(record))
        by_seed[record.seed].append(_is_correct(record))
    seeds = tuple((seed, float(np.mean(by_seed[seed]))) for seed in sorted(by_seed))
    return MethodSummary(
        method=method,
        budget=budget,
        n_problems=len(by_task),
        accuracy=accuracy_over_problems(by_task, bootstrap_seed=bootstrap_seed),
        by_seed=seeds,
        over_seeds=seed_interval([x for _, x in seeds]) if len(seeds) > 1 else None,
        tokens_per_answer=float(np.mean([record.n_generated_tokens for record in records])),
        n_answers=len(records),
        n_unparsed=sum(record.grade is Grade.UNPARSED for record in records),
        n_timeout=sum(record.grade is Grade.TIMEOUT for record in records),
        n_cut=sum(record.finish_reason is FinishReason.LENGTH for record in records),
    )


def accuracy_over_problems(by_task: Mapping[str, Sequence[bool]], *, bootstrap_seed: int = 0) -> Interval:
    """Share of correct answers, given those to each problem: Wilson for one each, else a bootstrap over problems."""
    total, n = [sum(x) for x in by_task.values()], [len(x) for x in by_task.values()]
    if sum(n) == len(by_task):
        return wilson_interval(sum(total), len(by_task))
    return bootstrap_interval(total, n, rng=np.random.default_rng(bootstrap_seed))


def compare(
    records_a: Sequence[AnswerRecord], records_b: Sequence[AnswerRecord], *, bootstrap_seed: int = 0
) -> Comparison:
    """Pair two methods on (seed, problem) and subtract: a − b.

    Raises ComparisonError when a method answers a problem twice, or when seeds or problems differ.
    """
    name_a, name_b = _only_method(records_a), _only_method(records_b)
    correct_a, correct_b = _by_seed_and_task(records_a), _by_seed_and_task(records_b)
    _check_same(correct_a, correct_b, _label(name_a), _label(name_b))
    by_task: dict[str, list[int]] = defaultdict(list)
    for (seed, task_id), is_correct in correct_a.items():
        by_task[task_id].append(int(is_correct) - int(correct_b[seed, task_id]))
    seeds = sorted({seed for seed, _ in correct_a})
    by_seed = tuple(_seed_difference(seed, correct_a, correct_b) for seed in seeds)
    total, n = [sum(x) for x in by_task.values()], [len(x) for x in by_task.values()]
    return Comparison(
        a=name_a,
        b=name_b,
        n_problems=len(by_task),
        difference=bootstrap_interval(total, n, rng=np.random.default_rng(bootstrap_seed)),
        over_seeds=seed_interval([s.difference for s in by_seed]) if len(by_seed) > 1 else None,
        by_seed=by_seed,
    )


Correct = Mapping[tuple[int, str], bool]  # by (seed, task_id)


def _seed_difference(seed: int, correct_a: Correct, correct_b: Correct) -> SeedDifference:
    keys = [key for key in correct_a if key[0] == seed]
    n_only_a = sum(correct_a[key] and not correct_b[key] for key in keys)
    n_only_b = sum(correct_b[key] and not correct_a[key] for key in keys)
    return SeedDifference(seed, (n_only_a - n_only_b) / len(keys), n_only_a, n_only_b, mcnemar_p(n_only_a, n_only_b))


def _is_correct(record: AnswerRecord) -> bool:
    return record.grade is Grade.CORRECT


def _label(key: MethodBudget) -> str:
    method, budget = key
    return f"{method} (budget {budget})"


def _only_method(records: Sequence[AnswerRecord]) -> MethodBudget:
    keys = list(group_records(records))
    if len(keys) != 1:
        raise ComparisonError(f"expected the records of one method at one budget, got {keys or 'none'}")
    return keys[0]


def _by_seed_and_task(records: Sequence[AnswerRecord]) -> dict[tuple[int, str], bool]:
    answers: dict[tuple[int, str], bool] = {}
    for record in records:
        key = (record.seed, record.task_id)
        if key in answers:
            raise ComparisonError(
                f"{record.method} (budget {record.budget}) answers {record.task_id!r} twice under seed {record.seed}: "
                "pairing needs one answer per problem"
            )
        answers[key] = _is_correct(record)
    return answers


def _check_same(correct_a: Correct, correct_b: Correct, a: str, b: str) -> None:
    seeds_a, seeds_b = sorted({s for s, _ in correct_a}), sorted({s for s, _ in correct_b})
    if seeds_a != seeds_b:
        raise ComparisonError(f"{a} has seeds {seeds_a}, {b} has seeds {seeds_b}: compare the seeds both have")
    for one, other, name, lacking in ((correct_a, correct_b, a, b), (correct_b, correct_a, b, a)):
        missing = sorted(set(one) - set(other))
        if missing:
            shown = ", ".join(f"{task_id!r} (seed {seed})" for seed, task_id in missing[:N_IDS_SHOWN])
            more = f" and {len(missing) - N_IDS_SHOWN} more" if len(missing) > N_IDS_SHOWN else ""
            raise ComparisonError(
                f"{lacking} lacks {len(missing)} problems that {name} answered: {shown}{more}. "
                "Did its evaluation stop early, or run with another --limit?"
            )
