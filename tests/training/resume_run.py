"""A small training run for test_resume to kill; `main` is called in a process of its own.

`kind` is "oreo" (the library's trainer on three networks) or "dropout" (a bare Trainer whose losses hang on the random
generator). With `kill_at_file`, the end of a path, the process sends itself SIGKILL when it opens such a file.
Beside RUN_DIR, `.log` takes what it prints and `.steps` grows by a byte with every optimiser step.
"""

from __future__ import annotations

import os
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

from posttrain.training.metrics_callback import MetricsFile
from posttrain.training.safe_checkpointing import SafeCheckpointing
from tests.training.tiny_oreo import tiny_config, tiny_trainer, trajectories, write_policy

SETTINGS: dict[str, Any] = {
    "max_steps": 36,  # 23 rows in steps of 2 x 4: three steps per epoch, so runs are also cut between epochs
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 7,
    "save_total_limit": 2,
    "logging_steps": 3,  # no divisor of save_steps: sums between two logs must survive too
    "lr_scheduler_type": "cosine",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def main(kind: str, run_dir: Path, kill_at_file: str | None = None) -> None:
    log = os.open(run_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    if kill_at_file is not None:
        sys.addaudithook(lambda event, args: _kill_when_opened(kill_at_file, event, args))
    torch.set_num_threads(1)
    trainer = {"oreo": oreo_trainer, "dropout": dropout_trainer}[kind](run_dir)
    trainer.add_callback(MetricsFile())
    trainer.add_callback(StepCount(run_dir.with_suffix(".steps")))
    trainer.train(resume_from_checkpoint="latest")
    trainer.save_model()


class StepCount(TrainerCallback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        with self.path.open("ab") as file:
            file.write(b".")


def oreo_trainer(run_dir: Path) -> SafeCheckpointing:
    policy = write_policy(run_dir.with_suffix(".policy"))
    config = tiny_config(policy, run_dir, value_warmup_steps=10, kl_target=0.05, kl_target_rate=0.1, **SETTINGS)
    return tiny_trainer(config, trajectories(23))


def dropout_trainer(run_dir: Path) -> SafeCheckpointing:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.1,
        tie_word_embeddings=True,
    )
    ids = torch.randint(0, 32, (23, 12), generator=torch.Generator().manual_seed(1))
    return SafeCheckpointing(
        LlamaForCausalLM(config),
        TrainingArguments(str(run_dir), learning_rate=1e-3, **SETTINGS),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],  # type: ignore[arg-type]
    )


def _kill_when_opened(ending: str, event: str, args: tuple[object, ...]) -> None:
    if event == "open" and fnmatch(str(args[0]), f"*{ending}"):
        os.kill(os.getpid(), signal.SIGKILL)
