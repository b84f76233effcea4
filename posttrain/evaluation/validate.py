"""`posttrain eval validate FILE`: is a results file whole, and would its grades be given again?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from posttrain.data.problems import read_problems
from posttrain.evaluation.records import SAMPLE, answers_file, read_records, split_method
from posttrain.evaluation.tasks import task_source
from posttrain.rewards.grade import grade_all
from posttrain.rewards.pool import GradingPool
from posttrain.schema import AnswerRecord, Problem

N_SHOWN = 5


@dataclass(frozen=True)
class ValidateConfig:
    """What to check."""

    results: Path = field(
        metadata={"help": "a results file, or the folder that holds answers.jsonl", "positional": True}
    )
    problems: str | None = field(
        default=None, metadata={"help": "task or source of the problems: every grade is then made anew and compared"}
    )
    n_graders: int = field(default=1, metadata={"help": "processes that grade answers which need computer algebra"})


def validate(config: ValidateConfig) -> int:
    """Print what is wrong with the file; the exit code is 1 if anything is. RecordError for unreadable lines."""
    file = answers_file(config.results) if config.results.is_dir() else config.results
    records = read_records(file)
    faults = [*_doubles(records), *_holes(records)]
    if config.problems is not None:
        source, _ = task_source(config.problems)
        problems = {problem.task_id: problem for problem in read_problems(source, limit=None)}
        with GradingPool(n_workers=config.n_graders) as pool:
            faults += _other_grades(records, problems, pool)
    for fault in faults:
        print(fault)
    n_tasks = len({record.task_id for record in records})
    print(f"{file}: {len(records)} records of {n_tasks} problems, " + ("sound" if not faults else "not sound"))
    return 1 if faults else 0


def _doubles(records: Sequence[AnswerRecord]) -> Iterator[str]:
    counts = Counter(record.key for record in records if record.key is not None)
    doubled = [key for key, n in counts.items() if n > 1]
    if doubled:
        yield f"{len(doubled)} keys are on file more than once, the first {doubled[0]}: was the file joined by hand?"


def _holes(records: Sequence[AnswerRecord]) -> Iterator[str]:
    """Methods that lack answers to problems that the same policy has answered otherwise."""
    tasks_of: dict[tuple[str, int], Counter[tuple[str, int]]] = {}
    for record in records:
        tasks_of.setdefault((record.method, record.budget), Counter())[record.task_id, record.seed] += 1
    for (method, budget), counts in tasks_of.items():
        policy = split_method(method)[0]
        of_policy = {task for (name, _), own in tasks_of.items() if split_method(name)[0] == policy for task in own}
        missing = sorted(of_policy - counts.keys())
        if missing:
            yield f"{method}, n = {budget}: {len(missing)} problems are missing, the first {missing[0][0]}"
        if split_method(method)[1] == SAMPLE and len(set(counts.values())) > 1:
            low, high = min(counts.values()), max(counts.values())
            yield f"{method}: {low} to {high} samples per problem: was the evaluation stopped? Run it again to go on"


def _other_grades(records: Sequence[AnswerRecord], problems: dict[str, Problem], pool: GradingPool) -> Iterator[str]:
    unknown = sorted({record.task_id for record in records} - problems.keys())
    if unknown:
        yield f"{len(unknown)} of the problems are not in the source given, the first {unknown[0]}"
    known = [record for record in records if record.task_id in problems]
    pairs = [(_as_graded(problems[record.task_id], record), record.text) for record in known]
    changed = [
        (record, grade) for record, grade in zip(known, grade_all(pairs, pool), strict=True) if grade != record.grade
    ]
    if changed:
        yield f"{len(changed)} of {len(known)} grades are others now:"
        for record, grade in changed[:N_SHOWN]:
            yield f"  {record.task_id} ({record.method}): was {record.grade}, is {grade}: ...{record.text[-60:]!r}"


def _as_graded(problem: Problem, record: AnswerRecord) -> Problem:
    return replace(problem, grader=record.grades[0][0]) if record.grades else problem
