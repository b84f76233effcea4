"""What a study of `posttrain control` leaves on disk, and how it is read back.

RUN/run.json                                the card: command, commit, versions, device
RUN/study.json                              {"study": its name, "config": the settings that its numbers hang on}
RUN/results.jsonl                           one JSON object per result: "method", "seed", and numbers
RUN/<method>/seed-<n>/metrics.jsonl         learning curves, where something is learned
RUN/<method>/seed-<n>/arrays.safetensors    small arrays to draw: distributions, phase portraits
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.evaluation.run_folder import Curves, RunFolderError, read_curves
from posttrain.provenance import write_json, write_run_card

STUDY, RESULTS, ARRAYS, METRICS = "study.json", "results.jsonl", "arrays.safetensors", "metrics.jsonl"

Row = Mapping[str, Any]  # of results.jsonl


@dataclass(frozen=True, slots=True)
class StudyRun:
    """A study's folder in memory."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    rows: tuple[Row, ...]  # in the order written
    curves: Mapping[str, Mapping[int, Curves]]  # by method and seed

    def methods(self) -> tuple[str, ...]:
        """The methods of all rows, in the order in which they first occur."""
        return tuple(dict.fromkeys(row["method"] for row in self.rows))

    def numbers(self, key: str, **where: object) -> list[float]:
        """`key` of the rows that match, in the order of their seeds; rows that lack it are passed over."""
        found = [row for row in self.rows if key in row and all(row.get(name) == is_ for name, is_ in where.items())]
        return [float(row[key]) for row in sorted(found, key=lambda row: row.get("seed", 0))]


def begin_study(folder: Path, name: str, config: Mapping[str, Any]) -> None:
    """Write the card and study.json. `config` is JSON, without what the numbers do not hang on (processes, paths).

    A folder that has begun with the same config is gone on with. Raises ValueError when it is of another study or
    config, naming the settings that differ.
    """
    settings = json.loads(json.dumps(dict(config)))
    path = folder / STUDY
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        if begun["study"] != name:
            raise ValueError(f"{folder} is of the study {begun['study']!r}, not of {name!r}: name another output")
        was = begun["config"]
        differing = sorted(key for key in {**was, **settings} if was.get(key) != settings.get(key))
        if differing:
            raise ValueError(
                f"{folder} is of a study with another {', '.join(differing)}: name another output, or its settings"
            )
    write_run_card(folder, settings, {})
    write_json(path, {"study": name, "config": settings})


def run_dir(folder: Path, method: str, seed: int) -> Path:
    """Where the files of one run of a study are."""
    return folder / method / f"seed-{seed}"


def append_result(folder: Path, row: Row) -> None:
    """Add one result; processes may do so at once. Raises TypeError for what JSON has no type for."""
    line = json.dumps(dict(row)) + "\n"
    file = os.open(folder / RESULTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())  # one call, so that lines of several processes do not mix
    finally:
        os.close(file)


def read_results(folder: Path) -> tuple[Row, ...]:
    """The rows of results.jsonl, () where there is none. Raises RunFolderError (file:line) for a broken row."""
    path = folder / RESULTS
    if not path.exists():
        return ()
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{path.name}:{number}: not JSON: {error}; delete the line to go on") from None
        if not isinstance(rows[-1], dict) or "method" not in rows[-1]:
            raise RunFolderError(f'{path.name}:{number}: expected a JSON object with "method"')
    return tuple(rows)


def is_done(folder: Path, **asked: object) -> bool:
    """Whether a result with these entries is on file, such as method="tb", seed=0."""
    return any(all(row.get(name) == value for name, value in asked.items()) for row in read_results(folder))


def read_study(folder: Path) -> StudyRun:
    """Everything that the report draws from, but the arrays, which it opens one by one.

    Raises FileNotFoundError when the folder has no study, RunFolderError (file:line) for a broken line.
    """
    if not (folder / STUDY).exists():
        raise FileNotFoundError(f"{folder} has no {STUDY}: expected what a `posttrain control` command has written")
    begun = json.loads((folder / STUDY).read_text(encoding="utf-8"))
    curves: dict[str, dict[int, Curves]] = {}
    for path in sorted(folder.glob(f"**/seed-*/{METRICS}")):
        if number := re.fullmatch(r"seed-(\d+)", path.parent.name):
            method = path.parent.parent.relative_to(folder).as_posix()
            curves.setdefault(method, {})[int(number[1])] = read_curves(path)
    return StudyRun(folder, begun["study"], begun["config"], read_results(folder), curves)
