"""`posttrain vision train`: a visual tokenizer and its one-step renderer, from drawn pictures. One process."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from posttrain.config_fields import plain
from posttrain.provenance import write_json, write_run_card
from posttrain.training.checkpoint import latest_complete_checkpoint, rotate_checkpoints, write_checkpoint
from posttrain.training.metrics import METRICS, supersede_rows
from posttrain.training.training_state import load_optimizer, save_optimizer
from posttrain.training.visual_tokenizer_config import VisualTokenizerConfig
from posttrain.training.visual_tokenizer_steps import VisualTokenizerSteps
from posttrain.vision.prompts import split_prompts
from posttrain.vision.reconstruction import judge_tokenizer

STATE, TENSORS = "state.json", "training.safetensors"
KEPT_CHECKPOINTS = 2
MAY_CHANGE = frozenset({"output_dir", "logging_steps", "checkpoint_steps", "n_threads"})

logger = logging.getLogger(__name__)


def train_visual_tokenizer(config: VisualTokenizerConfig) -> Path:
    """Train, save, and evaluate on scenes of held-out prompts; returns the run folder, which is the tokenizer's.

    A run that was stopped goes on from its last whole checkpoint and ends with the weights, bit for bit, of a run that
    was not (same machine and versions). Raises ValueError when the checkpoint is of another config.
    """
    torch.set_num_threads(config.n_threads)
    steps = VisualTokenizerSteps(config)
    start = resume(steps)
    if start == 0:
        write_run_card(config.output_dir, plain(asdict(config)), {})
    supersede_rows(config.output_dir, start)
    with tqdm(total=config.total_steps, initial=start, unit="step", disable=None) as bar:
        log = StepLog(config.output_dir, start=start, every=config.logging_steps)
        for step in range(start, config.total_steps):
            log.add(step + 1, steps.step(step))
            if (step + 1) % config.checkpoint_steps == 0:
                save_checkpoint(steps, step + 1)
            bar.update()
    tokenizer = steps.tokenizer.eval()
    tokenizer.save(config.output_dir)
    _, held_out = split_prompts(config.world())
    report = judge_tokenizer(tokenizer, held_out, n_pictures=config.n_eval_scenes, seed=config.seed).to_dict()
    log.write(config.total_steps, {f"eval_{name}": value for name, value in report.items()})
    print("\n".join(f"{name:28} {value:.4f}" for name, value in report.items()))
    return config.output_dir


def save_checkpoint(steps: VisualTokenizerSteps, step: int) -> None:
    """Write `checkpoint-<step>`, the state after so many steps, and delete all but the newest few."""
    folder = steps.config.output_dir / f"checkpoint-{step}"
    write_checkpoint(folder, lambda staging: _write_state(steps, step, staging))
    rotate_checkpoints(steps.config.output_dir, newest=folder, keep=KEPT_CHECKPOINTS)


def resume(steps: VisualTokenizerSteps) -> int:
    """Restore the last whole checkpoint of the run folder; returns how many steps it holds, 0 where there is none."""
    folder = latest_complete_checkpoint(steps.config.output_dir)
    if folder is None:
        return 0
    state = json.loads((folder / STATE).read_text())
    was, now = state["config"], _what_was_trained(steps)
    differing = sorted(name for name in now if was.get(name) != now[name])
    if differing:
        raise ValueError(
            f"{folder} is of a run with another {', '.join(differing)}: give that config, or another output_dir"
        )
    tensors = load_file(folder / TENSORS)
    steps.generator.set_state(tensors.pop("generator"))
    steps.tokenizer.load_state_dict(tensors)
    steps.start_optimizer(state["step"] - 1)  # at the border of the stages, the next step makes the next optimiser
    load_optimizer(folder, steps.optimizer, steps.trained_parameters(state["step"] - 1))
    logger.info("Going on from %s", folder)
    return state["step"]


def _write_state(steps: VisualTokenizerSteps, step: int, folder: Path) -> None:
    tensors = {name: value.contiguous() for name, value in steps.tokenizer.state_dict().items()}
    save_file({**tensors, "generator": steps.generator.get_state()}, folder / TENSORS)
    save_optimizer(folder, steps.optimizer, steps.trained_parameters(step - 1))
    write_json(folder / STATE, {"step": step, "config": _what_was_trained(steps)})


def _what_was_trained(steps: VisualTokenizerSteps) -> dict[str, Any]:
    config = json.loads(json.dumps(plain(asdict(steps.config))))
    return {name: value for name, value in config.items() if name not in MAY_CHANGE}


class StepLog:
    """Means of the losses as lines of metrics.jsonl, with the CPU seconds that this process has trained."""

    def __init__(self, run_dir: Path, *, start: int, every: int) -> None:
        self.path, self.start, self.every = run_dir / METRICS, start, every
        self.recent: dict[str, list[Tensor]] = {}
        self.cpu_start = time.process_time()

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Take the losses of the step that ends at `step`."""
        for name, value in losses.items():
            self.recent.setdefault(name, []).append(value)
        if step % self.every == 0:
            means = {name: float(torch.stack(values).mean()) for name, values in self.recent.items()}
            cpu_s = time.process_time() - self.cpu_start
            self.write(step, {**means, "cpu_s": cpu_s, "cpu_s_per_step": cpu_s / (step - self.start)})
            self.recent.clear()

    def write(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
