"""One process of two under ZeRO-3; test_zero3_export.py starts it through `accelerate launch`.

    accelerate launch --config_file launch/accelerate/zero3.yaml -m tests.training.zero3_export_run POLICY OUT

Trains OREO with each value model of ROLES into OUT/<role>, with a checkpoint after the last step. OUT/<role>/live.json
holds what the networks, still in shards over the two processes, then say about `PROBES`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor

from posttrain.data.collate import StateLevel, collate
from posttrain.training.trainer import ObjectiveTrainer
from tests.training.tiny_oreo import tiny_config, tiny_trainer, trajectories

N_STEPS = 4
ROLES = {"separate": {}, "lora": {"value_lora_rank": 4}}
PROBES = trajectories(6, seed=9)


def main(policy: Path, output_dir: Path) -> None:
    for role, changes in ROLES.items():
        AcceleratorState._reset_state()  # of the training before; the process group stays
        config = tiny_config(
            policy,
            output_dir / role,
            per_device_train_batch_size=2,
            max_steps=N_STEPS,
            save_strategy="steps",
            save_steps=N_STEPS,
            **changes,
        )
        trainer = tiny_trainer(config, trajectories(N_STEPS * 4))
        trainer.train()
        trainer.save_model()
        said = live_outputs(trainer, {name: tensor.to(config.device) for name, tensor in probe_batch().items()})
        if trainer.is_world_process_zero():
            (output_dir / role / "live.json").write_text(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


def probe_batch() -> dict[str, Tensor]:
    return collate(PROBES, pad_id=0, states=StateLevel.TOKEN)


def live_outputs(trainer: ObjectiveTrainer, batch: dict[str, Tensor]) -> dict[str, list[list[float]]]:
    """Of each probe: log π of its actions, and V of each prefix but the whole row."""
    engine = trainer.model_wrapped
    assert engine is not None
    assert all(weight.numel() == 0 for weight in engine.module.policy.model.layers.parameters() if weight.dim() == 2)
    engine.eval()
    with torch.no_grad():
        found = trainer.forward(engine, batch)
    rows = zip(PROBES, found.logp, found.value, batch["is_action"], strict=True)
    logp, value = [], []
    for probe, logp_T, value_T, is_action_T in rows:
        logp.append(logp_T[is_action_T].tolist())
        value.append(value_T[: len(probe.input_ids) - 1].tolist())
    return {"logp": logp, "value": value}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
