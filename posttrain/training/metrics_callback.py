"""What a transformers trainer logs, written to metrics.jsonl whatever `report_to` says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.training.metrics import METRICS, supersede_rows


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
