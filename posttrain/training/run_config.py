"""What every training verb can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from posttrain.data.sources import OnBadRow


@dataclass(kw_only=True)
class RunConfig:
    """Base of a config, to stand before transformers' or trl's so that its defaults win.

    It does not derive from TrainingArguments: as a dataclass it would then put back the defaults that trl changes.
    """

    model: str = field(metadata={"help": "Model to start from: a folder or Hub id of a causal LM.", "group": "models"})
    dtype: Literal["float32", "bfloat16", "float64"] = field(
        default="float32",
        metadata={"help": "Dtype of the weights as loaded. With bf16=true keep float32 here.", "group": "models"},
    )
    # Known to transformers or trl, with defaults that suit a small model on any machine.
    bf16: bool = field(default=False, metadata={"help": "Mixed precision in bfloat16.", "group": "memory"})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass.", "group": "memory"}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.accelerator.is_available,
        metadata={"help": "Copy from pinned memory; off without an accelerator.", "group": "memory"},
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "A checkpoint folder; or latest: the newest complete one, the start when there is none.",
            "group": "run",
        },
    )


@dataclass(kw_only=True)
class RowsConfig(RunConfig):
    """Base of a verb that learns from rows on file."""

    on_bad_row: OnBadRow = field(
        default=OnBadRow.ERROR,
        metadata={"help": "What a row that cannot be read does: stop, or be counted.", "group": "data"},
    )
    max_length: int = field(
        default=2048,
        metadata={"help": "Longest answer in tokens, prompt included; longer ones drop.", "group": "data"},
    )
    max_dropped_fraction: float = field(
        default=0.05, metadata={"help": "Stop if more than this share of the answers is dropped.", "group": "data"}
    )
