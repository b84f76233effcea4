"""What ObjectiveTrainer makes of transformers' TrainingArguments, whatever the objective is."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass(kw_only=True)
class ObjectiveArguments(TrainingArguments):
    """Base of a config that ObjectiveTrainer runs on."""

    policy_max_grad_norm: float | None = field(
        default=1.0,
        metadata={"help": "Clip the policy's gradient to this L2 norm; null: never.", "group": "optimizer"},
    )
    log_prob_chunk_size: int = field(
        default=1024,
        metadata={"help": "Positions whose logits exist at a time; lower saves memory.", "group": "memory"},
    )
    # Inherited from TrainingArguments, with the defaults that the trainer needs.
    max_grad_norm: float = field(default=0.0, metadata={"help": "Off: every network is clipped by a key of its own."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Off: what it reads is encoded already."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Off: NaN and Inf stop the run instead."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Off: every parameter receives a gradient in every step."}
    )
