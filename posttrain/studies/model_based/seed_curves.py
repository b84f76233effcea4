"""A stack of seeds logs one metrics file; the report reads one per seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.evaluation.study_files import METRICS, run_dir

STACK = "stack"  # the run of all seeds is in RUN/<method>/stack


def stack_dir(folder: Path, method: str) -> Path:
    return folder / method / STACK


def write_seed_curves(folder: Path, method: str, n_seeds: int) -> None:
    """Write the evaluations of each seed to RUN/<method>/seed-<n>/metrics.jsonl; "eval_x/<n>" becomes "eval_x"."""
    lines = (stack_dir(folder, method) / METRICS).read_text(encoding="utf-8").splitlines()
    evaluations = [row for row in map(json.loads, lines) if any(name.startswith("eval_") for name in row)]
    for seed in range(n_seeds):
        path = run_dir(folder, method, seed) / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"step": row["step"], **dict(_of_seed(row, seed))} for row in evaluations]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _of_seed(row: dict[str, Any], seed: int) -> Iterator[tuple[str, float]]:
    for name, number in row.items():
        key, slash, place = name.rpartition("/")
        if slash and key.startswith("eval_") and place == str(seed):
            yield key, number
