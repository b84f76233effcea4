"""Accuracy against compute: measured points, and the exact curves that scored samples give for every smaller n."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.evaluation.comparison import MethodSummary
from posttrain.evaluation.records import SAMPLE, MethodBudget, split_method
from posttrain.evaluation.statistics import Interval, best_of_n_accuracy, bootstrap_interval, pass_at_k
from posttrain.schema import AnswerRecord, FinishReason, Grade

EXACT = " (exact)"  # ends the label of an expectation over subsets


@dataclass(frozen=True, slots=True)
class BudgetPoint:
    """Accuracy that a method reaches with a budget."""

    label: str  # "oreo/beam", or "oreo/best_of_n (exact)" for an expectation over subsets
    budget: int  # samples per problem
    tokens: float  # generated per problem
    accuracy: Interval


def budget_points(
    summaries: Iterable[MethodSummary], answers: Mapping[MethodBudget, Sequence[AnswerRecord]]
) -> tuple[BudgetPoint, ...]:
    """Measured and exact points; a measured best-of-n gives way to an exact one that reaches as far."""
    measured, exact = measured_points(summaries), exact_points(answers)
    reach = {point.label: point.budget for point in exact}  # points come with rising budgets
    kept = tuple(p for p in measured if reach.get(p.label + EXACT, 0) < _largest(p.label, measured))
    return (*kept, *exact)


def measured_points(summaries: Iterable[MethodSummary]) -> tuple[BudgetPoint, ...]:
    """The points that were run; single samples are left out, since they are the parts of the others."""
    return tuple(
        BudgetPoint(summary.method, summary.budget, summary.tokens_per_answer, summary.accuracy)
        for summary in summaries
        if split_method(summary.method)[1] != SAMPLE
    )


def exact_points(answers: Mapping[MethodBudget, Sequence[AnswerRecord]]) -> tuple[BudgetPoint, ...]:
    """Best-of-n by value and pass@n, exact over all subsets, for every "<policy>/sample" that is on file.

    A single sample of each problem is no curve and gives no point.
    """
    points: list[BudgetPoint] = []
    for (method, _), records in answers.items():
        policy, decoding = split_method(method)
        if decoding != SAMPLE:
            continue
        points += _curve(f"{policy}/pass@n{EXACT}", records, _pass_at_n)
        if all(record.value is not None for record in records):
            points += _curve(f"{policy}/best_of_n{EXACT}", records, _best_of_n)
    return tuple(points)


def _largest(label: str, points: Iterable[BudgetPoint]) -> int:
    return max(point.budget for point in points if point.label == label)


def _curve(
    label: str, records: Sequence[AnswerRecord], accuracy: Callable[[Sequence[AnswerRecord], int], float]
) -> list[BudgetPoint]:
    pools: dict[tuple[int, str], list[AnswerRecord]] = defaultdict(list)
    for record in records:
        pools[record.seed, record.task_id].append(record)
    n_available = min(map(len, pools.values()))  # a problem with fewer samples would bend the curve
    if n_available == 1:
        return []
    tokens = float(np.mean([record.n_generated_tokens for record in records]))
    sizes = [2**i for i in range(n_available.bit_length())]
    return [BudgetPoint(label, n, n * tokens, _over_problems(pools, accuracy, n)) for n in sizes]


def _over_problems(
    pools: Mapping[tuple[int, str], Sequence[AnswerRecord]],
    accuracy: Callable[[Sequence[AnswerRecord], int], float],
    n: int,
) -> Interval:
    by_task: dict[str, list[float]] = defaultdict(list)
    for (_, task_id), pool in pools.items():
        by_task[task_id].append(accuracy(pool, n))
    total, count = [sum(x) for x in by_task.values()], [len(x) for x in by_task.values()]
    return bootstrap_interval(total, count, rng=np.random.default_rng(0))


def _best_of_n(pool: Sequence[AnswerRecord], n: int) -> float:
    """As search.best_of chooses: a cut answer only when none in the subset ended, then the higher value."""
    keys = [(record.finish_reason is FinishReason.STOP, record.value) for record in pool]
    rank = {key: i for i, key in enumerate(sorted(set(keys)))}
    return best_of_n_accuracy([rank[key] for key in keys], [record.grade is Grade.CORRECT for record in pool], n)


def _pass_at_n(pool: Sequence[AnswerRecord], n: int) -> float:
    return pass_at_k(len(pool), sum(record.grade is Grade.CORRECT for record in pool), n)
