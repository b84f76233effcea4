"""metrics.jsonl: one JSON line for each log of a run, and what a resumed run does with the lines before it."""

from __future__ import annotations

import json
import os
from pathlib import Path

METRICS = "metrics.jsonl"
SUPERSEDED = "metrics.superseded.jsonl"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, oldest first. A last line without its newline was cut by a kill and is left out.

    Raises ValueError with file and line when any other line is no JSON object with a `step`.
    """
    lines = path.read_text().split("\n")[:-1]
    return [_parse_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def supersede_rows(run_dir: Path, step: int) -> None:
    """Move the rows that a run starting at `step` is about to write again to metrics.superseded.jsonl."""
    path = run_dir / METRICS
    if not path.is_file():
        run_dir.mkdir(parents=True, exist_ok=True)
        return
    rows = read_metrics(path)
    kept = [row for row in rows if not _is_superseded(row, step)]
    with (run_dir / SUPERSEDED).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows if _is_superseded(row, step))
    # Rewritten also when all rows stay: a line cut by a kill must not run into the next one.
    replacement = path.with_suffix(".rewrite")
    replacement.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(replacement, path)


def _is_superseded(row: dict[str, float], step: int) -> bool:
    return row["step"] > step or (row["step"] == step and "train_runtime" in row)


def _parse_row(line: str, where: str) -> dict[str, float]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg}): {line[:80]!r}; was the file edited?") from error
    if not isinstance(row, dict) or "step" not in row:
        raise ValueError(f"{where}: expected an object with a 'step', found {line[:80]!r}")
    return row
