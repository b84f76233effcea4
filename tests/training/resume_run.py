"""A small training run in a process of its own, for test_resume to kill: resume_run.py KIND RUN_DIR [KILL_AT_FILE].

KIND is "oreo" (the library's trainer on three networks) or "dropout" (a bare Trainer whose losses hang on the random
generator). With KILL_AT_FILE, the end of a path, the process sends itself SIGKILL when it opens such a file.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from posttrain.training.metrics import MetricsFile
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


def main(kind: str, run_dir: Path, kill_at_file: str | None) -> None:
    if kill_at_file is not None:
        sys.addaudithook(lambda event, args: _kill_when_opened(kill_at_file, event, args))
    torch.set_num_threads(1)
    trainer = {"oreo": oreo_trainer, "dropout": dropout_trainer}[kind](run_dir)
    trainer.add_callback(MetricsFile())
    trainer.train(resume_from_checkpoint="latest")
    trainer.save_model()


def oreo_trainer(run_dir: Path) -> SafeCheckpointing:
    policy = write_policy(run_dir.with_suffix(".policy"))
    return tiny_trainer(tiny_config(policy, run_dir, value_warmup_steps=10, **SETTINGS), trajectories(23))


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
    if event == "open" and str(args[0]).endswith(ending):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
