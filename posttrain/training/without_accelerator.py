"""Training without an accelerator: settings that transformers and accelerate do not find by themselves."""

from __future__ import annotations

import os

import torch
from transformers import TrainingArguments


def choose_cpu(config: TrainingArguments) -> None:
    """Call before `TrainingArguments.__post_init__`; changes nothing where there is an accelerator.

    transformers refuses bf16 unless `use_cpu` is set, and the processes of a launcher talk over gloo only if they are
    told to: accelerate would leave them unconnected.
    """
    if torch.accelerator.is_available():
        return
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        config.ddp_backend = "gloo"  # with use_cpu accelerate would not start DeepSpeed
    else:
        config.use_cpu = True
