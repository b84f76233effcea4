"""What an evaluation says at its end: accuracies with intervals, groups of problems, and where graders disagree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from posttrain.evaluation.by_tag import accuracy_by_tag, tag_table
from posttrain.evaluation.records import SAMPLE, group_records, split_method
from posttrain.evaluation.statistics import Interval, bootstrap_interval, pass_at_k, wilson_interval
from posttrain.provenance import write_json
from posttrain.schema import AnswerRecord, Grade

OUTCOME = "outcome.json"
N_DISAGREEMENTS_SHOWN = 3


def summary(records: Sequence[AnswerRecord]) -> Iterator[str]:
    """One line per method and budget: accuracy with its 95 % Wilson interval, and tokens per problem."""
    for (method, budget), group in group_records(records).items():
        tokens = sum(record.n_generated_tokens for record in group) / len(group)
        unread = {grade: sum(record.grade is grade for record in group) for grade in (Grade.UNPARSED, Grade.TIMEOUT)}
        told = "".join(f", {n} {grade.value}" for grade, n in unread.items() if n)
        yield f"{method:32} n={budget:<4} {_accuracy(group)}   {len(group)} answers, {tokens:.0f} tokens each{told}"
    for (policy, k), at in pass_at(records).items():
        yield f"{policy + '/pass@' + str(k):39} {at.estimate:6.1%} [{at.low:.1%}, {at.high:.1%}]   unbiased"


def pass_at(records: Sequence[AnswerRecord]) -> dict[tuple[str, int], Interval]:
    """(policy, k) -> pass@k for k = 2, 4, ... of the samples of each problem, 95 % bootstrap over problems."""
    intervals = {}
    for (method, _), group in group_records(records).items():
        policy, decoding = split_method(method)
        by_task: dict[str, list[bool]] = {}
        for record in group:
            by_task.setdefault(record.task_id, []).append(record.grade is Grade.CORRECT)
        n = min(map(len, by_task.values()))
        for k in (2**power for power in range(1, n.bit_length()) if decoding == SAMPLE):
            chances = [pass_at_k(len(grades), sum(grades), k) for grades in by_task.values()]
            rng = np.random.default_rng(0)
            intervals[policy, k] = bootstrap_interval(chances, np.ones(len(chances)), rng=rng)
    return intervals


def disagreements(records: Sequence[AnswerRecord]) -> Iterator[str]:
    """How the graders of a protocol differ: each one's accuracy, how often two differ, and the first such answers."""
    names = [name for name, _ in records[0].grades] if records else []
    if len(names) < 2:
        return
    shares = [sum(dict(r.grades)[name] is Grade.CORRECT for r in records) / len(records) for name in names]
    yield "  by grader: " + ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True))
    split = [r for r in records if len({grade is Grade.CORRECT for _, grade in r.grades}) > 1]
    yield f"  they disagree on {len(split)} of {len(records)} answers" + (", the first:" if split else "")
    for record in split[:N_DISAGREEMENTS_SHOWN]:
        said = ", ".join(f"{name} {grade.value}" for name, grade in record.grades)
        yield f"    {record.task_id} ({record.method}): {said}: ...{record.text[-60:]!r}"


def write_outcome(card: Path, records: Iterable[AnswerRecord], *, seconds: Mapping[str, float]) -> None:
    """outcome.json and tables by tag beside the run card; `seconds` that this process took for each decoding."""
    kept = list(records)
    groups = group_records(kept)
    methods = {
        f"{method}, n = {budget}": {
            "n_answers": len(group),
            "n_tokens": sum(record.n_generated_tokens for record in group),
            **{grade.value: sum(record.grade is grade for record in group) for grade in Grade},
        }
        for (method, budget), group in groups.items()
    }
    chances = {f"{policy}/pass@{k}": asdict(at) for (policy, k), at in pass_at(kept).items()}
    write_json(card / OUTCOME, {"seconds": dict(seconds), "methods": methods, "pass_at_k": chances})
    for tag, values in accuracy_by_tag(groups).items():
        (card / f"by_{tag}.md").write_text(tag_table(tag, values).to_markdown(), encoding="utf-8")


def _accuracy(group: Sequence[AnswerRecord]) -> str:
    at = wilson_interval(sum(record.grade is Grade.CORRECT for record in group), len(group))
    return f"{at.estimate:6.1%} [{at.low:.1%}, {at.high:.1%}]"
