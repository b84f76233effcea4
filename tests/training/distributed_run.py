"""One process of distributed training runs; test_distributed.py starts it through `accelerate launch`.

    accelerate launch --config_file launch/accelerate/<x>.yaml \
        -m tests.training.distributed_run INPUTS OUT BATCH_SIZE ROLES [POISONED_ROW]

INPUTS holds what `write_inputs` wrote. ROLES are names of ROLES joined by commas; they are trained one after the
other, because starting the processes takes longer than training. Writes OUT/<role>/result.json with what each step
logged, and for OREO OUT/<role>/rows-<rank>.json with the row ids of each micro-batch.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer

from posttrain.pretrained import load_tokenizer
from posttrain.schema import TokenValues
from posttrain.training.dpo import DpoBaselineConfig, build_dpo_trainer, read_pairs
from posttrain.training.trainer import ObjectiveTrainer
from tests.training.tiny_oreo import N_TOKENS, step_logs, tiny_config, tiny_trainer, trajectories, write_policy

N_STEPS = 6
GLOBAL_BATCH = 8
N_MICRO_BATCHES = 2
OREO_ROLES: dict[str, dict[str, Any]] = {
    "separate": {},
    "lora": {"value_lora_rank": 4},
    "adapters_off": {"policy_lora_rank": 4, "reference_from": "adapters_off"},
    "two_adapters": {"roles": "two_adapters", "policy_lora_rank": 4, "value_lora_rank": 4, "alpha": 0.2},
    "shared_trunk": {"roles": "shared_trunk", "value_gradient_scale": 0.5},
    "cached_hidden": {"reference_from": "cached_hidden", "alpha_forward": 0.2},
    "cached_log_probs": {"reference_from": "cached_log_probs", "alpha": 0.0},
}
ROLES = (*OREO_ROLES, "dpo")  # packed rows are compared with padded ones, so they are trained apart
PACKED = "packed"
STEERED, STEERED_ON = "steered", "steered_on"  # by a KL target; the second goes on from INPUTS/checkpoint-3
TARGET = {"kl_target": 0.1, "kl_target_rate": 0.1, "save_strategy": "steps", "save_steps": 3}
CHANGES = {**OREO_ROLES, PACKED: {"padding_free": True}, STEERED: TARGET, STEERED_ON: TARGET}


def write_inputs(folder: Path) -> Path:
    """A policy, and one better and one worse answer to as many prompts as the steps take."""
    write_policy(folder / "policy")
    rng = random.Random(1)
    rows = []
    for task in range(N_STEPS * GLOBAL_BATCH):
        prompt = [rng.randrange(4, N_TOKENS) for _ in range(3)]
        for reward in (1.0, 0.0):
            ids = prompt + [rng.randrange(4, N_TOKENS) for _ in range(rng.randint(2, 9))]
            answer = {"reward": reward, "input_ids": ids, "action_spans": [[3, len(ids)]], "finish_reason": "stop"}
            rows.append({"task_id": str(task), "prompt": " ".join(f"t{i}" for i in prompt), **answer})
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def main(inputs: Path, output_dir: Path, batch_size: int, roles: list[str], poisoned_row: int | None = None) -> None:
    for role in roles:
        AcceleratorState._reset_state()  # of the training before; the process group stays
        if role == "dpo":
            trainer: Trainer = dpo_trainer(inputs, output_dir / role, batch_size)
        else:
            trainer = oreo_trainer(inputs, output_dir / role, batch_size, CHANGES[role], poisoned_row)
        trainer.train(resume_from_checkpoint=str(inputs / "checkpoint-3") if role == STEERED_ON else None)
        trainer.save_model()
        _write_result(trainer, output_dir / role)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def oreo_trainer(
    inputs: Path, output_dir: Path, batch_size: int, changes: dict[str, Any], poisoned_row: int | None
) -> ObjectiveTrainer:
    config = tiny_config(
        inputs / "policy",
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
        **changes,
    )
    _let_accelerate_shard_on_cpu()
    trainer = tiny_trainer(config, trajectories(N_STEPS * GLOBAL_BATCH, poisoned_row=poisoned_row))
    _record_rows(trainer, output_dir / f"rows-{config.process_index}.json")
    return trainer


def dpo_trainer(inputs: Path, output_dir: Path, batch_size: int) -> Trainer:
    config = DpoBaselineConfig(
        model=str(inputs / "policy"),
        train_data=[str(inputs / "answers.jsonl")],
        output_dir=str(output_dir),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=N_MICRO_BATCHES,
        max_steps=N_STEPS,
        beta=0.3,
        learning_rate=1e-2,
        max_grad_norm=1.0,  # below every norm that is seen
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=7,
    )
    _let_accelerate_shard_on_cpu()
    tokenizer = load_tokenizer(config.model)
    pairs, _ = read_pairs(config, tokenizer)
    return build_dpo_trainer(config, pairs, tokenizer)


def _write_result(trainer: Trainer, folder: Path) -> None:
    if trainer.is_world_process_zero():
        result = {
            "steps": step_logs(trainer),
            "engine": type(trainer.model_wrapped).__name__,
            "n_processes": trainer.accelerator.num_processes,
            "sharded": _held_fraction(trainer.model),
        }
        (folder / "result.json").write_text(json.dumps(result))


def _record_rows(trainer: ObjectiveTrainer, path: Path) -> None:
    forward = trainer.forward
    rows: list[list[int]] = []

    def recording(model: nn.Module, batch: dict[str, Tensor]) -> TokenValues:
        rows.append(batch["row_id"].tolist())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
        return forward(model, batch)

    trainer.forward = recording


def _let_accelerate_shard_on_cpu() -> None:
    """accelerate prepares FSDP for a list of device types, all of them GPUs; torch shards over gloo as well."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not torch.cuda.is_available():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _held_fraction(model: nn.Module) -> float:
    """The share of the largest weight of the policy that this process holds between steps."""
    policy = model.get_submodule("policy") if "policy" in model._modules else model
    weight = max(policy.parameters(), key=_full_size)
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
        sys.argv[4].split(","),
        int(sys.argv[5]) if len(sys.argv) > 5 else None,
    )
