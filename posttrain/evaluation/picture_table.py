"""Answers to picture problems by family of prompts, and the gain of one method over another, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

import numpy as np

from posttrain.evaluation.records import MethodBudget, group_records
from posttrain.evaluation.statistics import Interval, bootstrap_interval, seed_interval
from posttrain.evaluation.tables import (
    NOT_APPLICABLE,
    Table,
    method_label,
    percent_interval,
    percent_with_interval,
    points_interval,
)
from posttrain.schema import AnswerRecord, Grade

FAMILY = "family"
MEAN = "mean of families"


def families_of(records: Sequence[AnswerRecord]) -> list[str]:
    """In the order of the answers. Raises ValueError for an answer to a problem without a family."""
    strays = [record.task_id for record in records if FAMILY not in dict(record.tags)]
    if strays:
        raise ValueError(f"{strays[0]!r} has no tag {FAMILY!r}: was it written by posttrain vision problems?")
    return list(dict.fromkeys(dict(record.tags)[FAMILY] for record in records))


def picture_table(records: Sequence[AnswerRecord], methods: Sequence[MethodBudget]) -> Table:
    """Pictures that pass every check, %: by family, and the mean of the families, which weighs each the same.

    A family's interval is a bootstrap over its prompts, that of the mean Student's t over seeds (none for one seed).
    """
    groups = group_records(records)
    families = families_of(records)
    header = ("method", *(f"{family}, %" for family in families), f"{MEAN}, %", "over seeds")
    rows = []
    for method in methods:
        by_seed = list(means_of_families(groups[method]).values())
        over_seeds = seed_interval(by_seed) if len(by_seed) > 1 else None
        rows.append(
            (
                method_label(*method),
                *(_of_family(groups[method], family) for family in families),
                f"{100 * mean(by_seed):.1f}",
                percent_interval(over_seeds),
            )
        )
    return Table(header, tuple(rows))


def gain_table(records: Sequence[AnswerRecord], pairs: Sequence[tuple[MethodBudget, MethodBudget]]) -> Table:
    """Points that the first of each pair is above the second in the mean of the families, seed by seed."""
    groups = group_records(records)
    rows = []
    for a, b in pairs:
        of_a, of_b = means_of_families(groups[a]), means_of_families(groups[b])
        if of_a.keys() != of_b.keys():
            raise ValueError(f"{a[0]} has seeds {sorted(of_a)}, {b[0]} {sorted(of_b)}: they must be the same")
        gains = [of_a[seed] - of_b[seed] for seed in sorted(of_a)]
        over_seeds = seed_interval(gains) if len(gains) > 1 else None
        rows.append(
            (
                f"{method_label(*a)} over {method_label(*b)}",
                f"{100 * mean(gains):+.1f}",
                points_interval(over_seeds),
                ", ".join(f"{100 * gain:+.1f}" for gain in gains),
            )
        )
    return Table(("gain, points", "mean", "95 %, over seeds", "by seed"), tuple(rows))


def means_of_families(records: Sequence[AnswerRecord]) -> Mapping[int, float]:
    """seed -> the share of right answers in each family, averaged over the families."""
    by_seed: dict[int, dict[str, list[bool]]] = {}
    for record in records:
        family = dict(record.tags)[FAMILY]
        by_seed.setdefault(record.seed, {}).setdefault(family, []).append(record.grade is Grade.CORRECT)
    return {seed: mean(map(mean, own.values())) for seed, own in sorted(by_seed.items())}


def _of_family(records: Sequence[AnswerRecord], family: str) -> str:
    by_task: dict[str, list[bool]] = {}
    for record in records:
        if dict(record.tags)[FAMILY] == family:
            by_task.setdefault(record.task_id, []).append(record.grade is Grade.CORRECT)
    if not by_task:
        return NOT_APPLICABLE
    return percent_with_interval(_over_prompts(list(by_task.values())))


def _over_prompts(by_prompt: Sequence[Sequence[bool]]) -> Interval:
    return bootstrap_interval([sum(own) for own in by_prompt], [len(own) for own in by_prompt], rng=_rng())


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)
