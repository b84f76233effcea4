"""metrics.jsonl: one JSON line for each log of a run, always written, whatever `report_to` says."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRICS = "metrics.jsonl"
SUPERSEDED = "metrics.superseded.jsonl"


class MetricsFile(TrainerCallback):
    """Appends `{"step": ..., "time": ..., <every scalar logged>}` to metrics.jsonl in the run folder, on rank 0.

    `time` is seconds since the epoch. Floats are written with all their digits; NaN and infinities as NaN, Infinity.
    Each line is flushed, so a killed run loses at most the line being written.

    A run that starts at step k (0, or the checkpoint's step after a resume) supersedes what an earlier process wrote
    beyond that point: rows past step k, and the end-of-training summary at step k. They move to
    metrics.superseded.jsonl, so that metrics.jsonl tells one history in which no step comes twice.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            supersede_rows(Path(args.output_dir or "."), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        scalars = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        row = {"step": state.global_step, "time": time.time(), **scalars}
        with (Path(args.output_dir or ".") / METRICS).open("a") as file:
            file.write(json.dumps(row) + "\n")


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
