"""What a finished run leaves on disk, read back for the report.

    RUN/run.json                 what was run: command, commit, versions, device, seeds (any JSON object); without it
                                 RUN/evaluations/<name>/run.json, the cards of `posttrain eval run`, or RUN/*.run.json
    RUN/answers.jsonl            AnswerRecords of all methods; or answers.jsonl.gz
    RUN/<stage>/metrics.jsonl    one JSON object per logged step: "step" and scalar keys
    RUN/*.jsonl                  games of ALFWorld, as `posttrain alfworld` writes them
    RUN/values.jsonl             V along solutions, one solution per line (see SolutionValues)

A study over several seeds has RUN/seed-0, RUN/seed-1, ..., each laid out like this.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.alfworld.play import GameRecord
from posttrain.evaluation.alfworld_baseline import read_game_records
from posttrain.evaluation.games_by_type import game_files
from posttrain.evaluation.records import MethodBudget, answers_file, load_run_records
from posttrain.schema import AnswerRecord, Grade

STAGES = ("sft", "rejection_sampling", "dpo", "oreo")

Curve = tuple[tuple[float, float], ...]  # (step, number), in the order logged
Curves = dict[str, Curve]  # by metric key


class RunFolderError(ValueError):
    """A file of a run folder that cannot be read; the message opens with file:line."""


@dataclass(frozen=True, slots=True)
class SolutionValues:
    """The value model's reading of one sampled solution; one entry per token in tokens, values and is_action."""

    task_id: str
    grade: Grade
    tokens: tuple[str, ...]  # the text of each token, prompt included
    values: tuple[float, ...]  # V of the prefix that ends with this token; after the last one there is no state
    is_action: tuple[bool, ...]  # the policy chose this token
    step_ends: tuple[int, ...]  # rising token indexes at which a reasoning line ends

    def states(self) -> range:
        """Indexes of the states of the answer: the end of the prompt, then every token but the last.

        V after the last token is 0 by definition and never read.
        """
        first = self.is_action.index(True) if True in self.is_action else len(self.tokens)
        return range(max(first - 1, 0), len(self.tokens) - 1)

    def step_states(self) -> tuple[int, ...]:
        """The line ends that are states; an answer cut at a line end, or ending with one, has no state there."""
        return tuple(end for end in self.step_ends if end in self.states())


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder in memory; `missing` says which files were not found."""

    folder: Path
    seed_folders: tuple[Path, ...]  # (folder,) itself when there are no seed-N folders
    info: tuple[dict[str, Any], ...]  # the run.json of each seed folder, or of the whole run
    answers: dict[MethodBudget, tuple[AnswerRecord, ...]]
    curves: dict[str, tuple[Curves, ...]]  # by stage, one entry per seed folder that has it
    solutions: dict[str, tuple[SolutionValues, ...]]  # by name of the seed folder, where it has them
    games: tuple[GameRecord, ...]  # of all ALFWorld files in the folder
    missing: tuple[str, ...]  # paths relative to the folder


def seed_folders(run: Path) -> tuple[Path, ...]:
    """RUN/seed-N in order of N, or RUN itself when it has none."""
    numbered = [(int(path.name[5:]), path) for path in run.glob("seed-*") if re.fullmatch(r"seed-\d+", path.name)]
    return tuple(path for _, path in sorted(numbered)) or (run,)


def copy_files(run: Path, kept: Path, patterns: Iterable[str]) -> None:
    """Copy the files of a run folder that match any of the glob patterns to the same places under `kept`.

    Raises FileNotFoundError for a pattern that is a plain path and is not there.
    """
    for pattern in patterns:
        for file in sorted(run.glob(pattern)) if "*" in pattern else [run / pattern]:
            place = kept / file.relative_to(run)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)


def load_run(run: Path) -> Run:
    """Everything the report needs from a run folder; absent files are listed, broken ones raise.

    Raises FileNotFoundError when the folder does not exist, RecordError or RunFolderError on a bad line.
    """
    if not run.is_dir():
        raise FileNotFoundError(
            f"{run} is no folder: expected a run folder with answers.jsonl or seed-0/answers.jsonl"
        )
    folders = seed_folders(run)
    missing: list[str] = []

    def present(name: str) -> list[Path]:
        return existing([folder / name for folder in folders])

    def existing(paths: list[Path]) -> list[Path]:
        missing.extend(str(path.relative_to(run)) for path in paths if not path.exists())
        return [path for path in paths if path.exists()]

    # A study may say once, at its top, what all its seeds share; an evaluation has a card for each policy.
    cards = [*sorted(run.glob("evaluations/*/run.json")), *sorted(run.glob("*.run.json"))]
    top = [run / "run.json"] if (run / "run.json").exists() else cards
    info_paths = top or present("run.json")
    curves = {stage: tuple(read_curves(path) for path in present(f"{stage}/metrics.jsonl")) for stage in STAGES}
    return Run(
        folder=run,
        seed_folders=folders,
        info=tuple(json.loads(path.read_text(encoding="utf-8")) for path in info_paths),
        answers=load_run_records([path.parent for path in existing([answers_file(folder) for folder in folders])]),
        curves={stage: by_seed for stage, by_seed in curves.items() if by_seed},
        solutions={path.parent.name: read_solutions(path) for path in present("values.jsonl")},
        games=tuple(record for path in game_files(run) for record in read_game_records(path)),
        missing=tuple(missing),
    )


def read_curves(path: Path) -> Curves:
    """Every numeric key of a metrics file against "step"; text entries are passed over."""
    points: dict[str, list[tuple[float, float]]] = {}
    for where, row in _objects(path):
        if not _is_number(row.get("step")):
            raise RunFolderError(f"{where}: step: got {row.get('step')!r}, expected a number on every line")
        for key, number in row.items():
            if key != "step" and _is_number(number):
                points.setdefault(key, []).append((float(row["step"]), float(number)))
    return {key: tuple(points[key]) for key in sorted(points)}


def read_solutions(path: Path) -> tuple[SolutionValues, ...]:
    """The solutions of a values file, in order."""
    return tuple(_parse_solution(row, where) for where, row in _objects(path))


def _parse_solution(row: dict[str, Any], where: str) -> SolutionValues:
    try:
        solution = SolutionValues(
            task_id=str(row["task_id"]),
            grade=Grade(row["grade"]),
            tokens=tuple(map(str, row["tokens"])),
            values=tuple(map(float, row["values"])),
            is_action=tuple(map(bool, row["is_action"])),
            step_ends=tuple(map(int, row["step_ends"])),
        )
    except KeyError as error:
        raise RunFolderError(f"{where}: {error.args[0]}: missing") from None
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{where}: {error}") from None
    _check_solution(solution, where)
    return solution


def _check_solution(solution: SolutionValues, where: str) -> None:
    n = len(solution.tokens)
    if len(solution.values) != n or len(solution.is_action) != n:
        raise RunFolderError(
            f"{where}: {n} tokens, {len(solution.values)} values and {len(solution.is_action)} is_action: "
            "expected one of each per token"
        )
    if not all(map(math.isfinite, solution.values)):
        raise RunFolderError(f"{where}: values: not all are finite: did the value head diverge?")
    ends = solution.step_ends
    if list(ends) != sorted(set(ends)) or (ends and not 0 <= ends[0] <= ends[-1] < n):
        raise RunFolderError(f"{where}: step_ends: got {list(ends)}, expected rising token indexes below {n}")


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.parent.name}/{path.name}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RunFolderError(f"{where}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise RunFolderError(f"{where}: expected a JSON object, got {type(row).__name__}")
            yield where, row


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
