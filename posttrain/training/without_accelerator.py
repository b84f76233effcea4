"""Training without an accelerator: settings that transformers and accelerate do not find by themselves."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
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
        _connect(config)


def _connect(config: TrainingArguments) -> None:
    """Join the launcher's processes over gloo with the config's `ddp_timeout`.

    With `use_cpu` transformers leaves the timeout out: when a host lost power, the others would wait for 30 minutes. A
    group that exists is kept.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group(config.ddp_backend or "gloo", timeout=timedelta(seconds=config.ddp_timeout))
