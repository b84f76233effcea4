"""The small loop of learners that need no Trainer: steps, a log, evaluations, checkpoints, an end by CPU time.

A run that was stopped goes on from its last whole checkpoint, and ends bit for bit as one that was not (same machine
and versions; a run that ends by CPU time ends where the time does).
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from tqdm.auto import tqdm

from posttrain.provenance import write_json
from posttrain.training.checkpoint import latest_complete_checkpoint, rotate_checkpoints, write_checkpoint
from posttrain.training.metrics import METRICS, supersede_rows
from posttrain.training.state_files import load_state, save_state

PROGRESS = "progress.json"
KEPT_CHECKPOINTS = 2

logger = logging.getLogger(__name__)


class Learner(Protocol):
    """What the loop trains: an agent with its environment, networks, replay and random generators."""

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        """Update number `step`, from 0, and the acting that belongs to it; scalars to log."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Measure what has been learned; leaves what `state` holds as it is."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as nested dicts and lists of tensors, numbers, strings, None."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """How long to go on, and how often to write."""

    output_dir: Path
    n_steps: int
    logging_steps: int = 100
    eval_steps: int = 0  # 0: at the end only
    checkpoint_steps: int = 0  # 0: none
    max_cpu_s: float | None = None  # stop after so many CPU seconds of steps; evaluations and files are not counted

    def __post_init__(self) -> None:
        if self.n_steps < 1 or self.logging_steps < 1 or min(self.eval_steps, self.checkpoint_steps) < 0:
            raise ValueError(
                f"n_steps {self.n_steps}, logging_steps {self.logging_steps}, eval_steps {self.eval_steps}, "
                f"checkpoint_steps {self.checkpoint_steps}: needed 1 or more of the first two, 0 (never) or more else"
            )


def run_loop(learner: Learner, config: LoopConfig, *, settings: Mapping[str, Any]) -> dict[str, float]:
    """Train; returns the last evaluation, with `steps` and `cpu_s`, the CPU seconds that the steps took.

    Rows of metrics.jsonl: "step", "time" (seconds since the epoch), "cpu_s", and the means of what `step` returned
    since the last row, or what `evaluate` did under names with eval_ before them.

    Raises ValueError when the folder has a checkpoint of other `settings`.
    """
    start, cpu_s = _resume(learner, config, settings)
    supersede_rows(config.output_dir, start)
    log = _Log(config.output_dir / METRICS)
    step = start
    for step in tqdm(range(start + 1, config.n_steps + 1), unit="step", disable=None, leave=False):
        before = time.process_time()
        log.add(learner.step(step - 1))
        cpu_s += time.process_time() - before
        is_last = step == config.n_steps or (config.max_cpu_s is not None and cpu_s >= config.max_cpu_s)
        if step % config.logging_steps == 0 or is_last:
            log.write_means(step, cpu_s)
        if _is_due(step, config.eval_steps) and not is_last:
            log.write_evaluation(step, cpu_s, learner.evaluate())
        if _is_due(step, config.checkpoint_steps):
            _save(learner, config, {"step": step, "cpu_s": cpu_s, "settings": dict(settings)})
        if is_last:
            break
    evaluated = learner.evaluate()
    log.write_evaluation(step, cpu_s, evaluated)
    return {"steps": float(step), "cpu_s": cpu_s, **evaluated}


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _save(learner: Learner, config: LoopConfig, progress: dict[str, Any]) -> None:
    def write(staging: Path) -> None:
        save_state(staging, learner.state())
        write_json(staging / PROGRESS, progress)

    folder = config.output_dir / f"checkpoint-{progress['step']}"
    write_checkpoint(folder, write)
    rotate_checkpoints(config.output_dir, newest=folder, keep=KEPT_CHECKPOINTS)


def _resume(learner: Learner, config: LoopConfig, settings: Mapping[str, Any]) -> tuple[int, float]:
    """Restore the last whole checkpoint; returns the steps and CPU seconds behind it, 0 where there is none."""
    folder = latest_complete_checkpoint(config.output_dir)
    if folder is None:
        return 0, 0.0
    progress = json.loads((folder / PROGRESS).read_text())
    was, now = progress["settings"], json.loads(json.dumps(dict(settings)))
    differing = sorted(name for name in {**was, **now} if was.get(name) != now.get(name))
    if differing:
        raise ValueError(
            f"{folder} is of a run with another {', '.join(differing)}: give those settings, or another output"
        )
    learner.load_state(load_state(folder))
    logger.info("Going on from %s", folder)
    return progress["step"], progress["cpu_s"]


class _Log:
    """Rows of metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recent: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, numbers: Mapping[str, Tensor | float]) -> None:
        for name, value in numbers.items():
            self.recent[name].append(float(value.detach() if isinstance(value, Tensor) else value))

    def write_means(self, step: int, cpu_s: float) -> None:
        self._write(step, cpu_s, {name: sum(values) / len(values) for name, values in self.recent.items()})
        self.recent.clear()

    def write_evaluation(self, step: int, cpu_s: float, evaluated: Mapping[str, float]) -> None:
        self._write(step, cpu_s, {f"eval_{name}": float(value) for name, value in evaluated.items()})

    def _write(self, step: int, cpu_s: float, numbers: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), "cpu_s": cpu_s, **numbers}) + "\n")
