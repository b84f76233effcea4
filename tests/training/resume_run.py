"""A small training run in a process of its own, for test_resume to kill: python resume_run.py RUN_DIR [KILL_AT_FILE].

With KILL_AT_FILE (a path ending), the process sends itself SIGKILL when it opens such a file.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from posttrain.training.metrics import MetricsFile
from posttrain.training.safe_checkpointing import SafeCheckpointing

N_STEPS = 80
SAVE_STEPS = 7


def main(run_dir: str, kill_at_file: str | None) -> None:
    if kill_at_file is not None:
        sys.addaudithook(lambda event, args: _kill_when_opened(kill_at_file, event, args))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.1,  # so that the generator's state decides the loss
        tie_word_embeddings=True,
    )
    ids = torch.randint(0, 32, (23, 12), generator=torch.Generator().manual_seed(1))
    args = TrainingArguments(
        run_dir,
        max_steps=N_STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        logging_steps=3,  # not a divisor of SAVE_STEPS: sums between two logs must survive too
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SafeCheckpointing(
        LlamaForCausalLM(config),
        args,
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],  # type: ignore[arg-type]
        callbacks=[MetricsFile()],
    )
    trainer.train(resume_from_checkpoint="latest")
    trainer.save_model()


def _kill_when_opened(ending: str, event: str, args: tuple[object, ...]) -> None:
    if event == "open" and str(args[0]).endswith(ending):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
