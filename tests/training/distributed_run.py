"""One process of a distributed training run; test_distributed.py starts it through `accelerate launch`.

    accelerate launch --config_file launch/accelerate/<x>.yaml \
        -m tests.training.distributed_run POLICY OUT BATCH_SIZE CHANGES [POISONED_ROW]

CHANGES is a JSON object of fields of OreoConfig. Writes OUT/result.json with what each step logged, and
OUT/rows-<rank>.json with the row ids of each micro-batch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.schema import TokenValues
from posttrain.training.trainer import ObjectiveTrainer
from tests.training.tiny_oreo import step_logs, tiny_config, tiny_trainer, trajectories

N_STEPS = 6
GLOBAL_BATCH = 8
N_MICRO_BATCHES = 2


def main(
    policy: Path, output_dir: Path, batch_size: int, changes: dict[str, Any], poisoned_row: int | None = None
) -> None:
    config = tiny_config(
        policy,
        output_dir,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=N_MICRO_BATCHES,
        max_steps=N_STEPS,
        policy_learning_rate=1e-2,
        value_learning_rate=2e-2,
        policy_max_grad_norm=0.3,  # below every norm that is seen, so both clips act in every step
        value_max_grad_norm=0.7,
        weight_decay=0.01,
        log_prob_chunk_size=5,  # several chunks, and not as many on each rank
        save_strategy="no",
        **changes,
    )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not torch.cuda.is_available():
        _let_accelerate_shard_on_cpu()
    trainer = tiny_trainer(config, trajectories(N_STEPS * GLOBAL_BATCH, poisoned_row=poisoned_row))
    rows: list[list[int]] = []
    _record_rows(trainer, rows)
    trainer.train()
    trainer.save_model()
    (output_dir / f"rows-{config.process_index}.json").write_text(json.dumps(rows))
    if trainer.is_world_process_zero():
        result = {
            "steps": step_logs(trainer),
            "engine": type(trainer.model_wrapped).__name__,
            "n_processes": trainer.accelerator.num_processes,
            "sharded": _held_fraction(trainer.model),
        }
        (output_dir / "result.json").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _record_rows(trainer: ObjectiveTrainer, rows: list[list[int]]) -> None:
    forward = trainer.forward

    def recording(model: nn.Module, batch: dict[str, Tensor]) -> TokenValues:
        rows.append(batch["row_id"].tolist())
        return forward(model, batch)

    trainer.forward = recording


def _let_accelerate_shard_on_cpu() -> None:
    """accelerate prepares FSDP for a list of device types, all of them GPUs; torch shards over gloo as well."""
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _held_fraction(model: nn.Module) -> float:
    """The share of the largest weight of the policy that this process holds between steps."""
    weight = max(model.get_submodule("policy").parameters(), key=_full_size)
    if isinstance(weight, DTensor):
        return weight.to_local().numel() / weight.numel()
    if hasattr(weight, "ds_tensor"):  # ZeRO-3
        return weight.ds_tensor.numel() / weight.ds_numel if weight.numel() == 0 else 1.0
    return 1.0


def _full_size(weight: nn.Parameter) -> int:
    return weight.ds_numel if hasattr(weight, "ds_numel") else weight.numel()


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        int(sys.argv[3]),
        json.loads(sys.argv[4]),
        int(sys.argv[5]) if len(sys.argv) > 5 else None,
    )
