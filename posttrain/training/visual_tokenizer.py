"""`posttrain vision train`: a visual tokenizer and its one-step renderer, from drawn pictures. One process."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from posttrain.config_fields import plain
from posttrain.provenance import write_run_card
from posttrain.training.loop import LoopConfig, run_loop
from posttrain.training.visual_tokenizer_config import VisualTokenizerConfig
from posttrain.training.visual_tokenizer_steps import VisualTokenizerSteps

MAY_CHANGE = frozenset({"output_dir", "logging_steps", "checkpoint_steps", "n_threads", "device"})


def train_visual_tokenizer(config: VisualTokenizerConfig) -> Path:
    """Train, evaluate on scenes of held-out prompts, and save; returns the run folder, which is the tokenizer's.

    A run that was stopped goes on from its last whole checkpoint and ends with the weights, bit for bit, of a run that
    was not (same machine and versions). Raises ValueError when the checkpoint is of another config.
    """
    torch.set_num_threads(config.n_threads)
    steps = VisualTokenizerSteps(config)
    settings = plain(asdict(config))
    write_run_card(config.output_dir, settings, {})
    loop = LoopConfig(
        output_dir=config.output_dir,
        n_steps=config.total_steps,
        logging_steps=config.logging_steps,
        checkpoint_steps=config.checkpoint_steps,
    )
    trained = {name: value for name, value in settings.items() if name not in MAY_CHANGE}
    evaluated = run_loop(steps, loop, settings=trained)
    steps.tokenizer.eval().save(config.output_dir)
    print("\n".join(f"{name:28} {value:.4f}" for name, value in evaluated.items()))
    return config.output_dir
