"""One process of an online run; test_online_distributed.py starts it through `accelerate launch`.

    accelerate launch --config_file launch/accelerate/<x>.yaml -m tests.training.online_run POLICY OUT PROMPTS

Prompts are those of one process. Writes OUT/result.json with what each step logged, and OUT/policy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from tests.training.tiny_online import online_config, online_trainer
from tests.training.tiny_oreo import step_logs

SETTINGS = {
    "dtype": "float64",
    "rounds": 3,
    "updates_per_round": 2,
    "objective": "grpo",
    "advantage_scale": "group_std",
    "even_groups": "skip",
    "resample_tries": 1,
    "policy_max_grad_norm": 0.3,  # below every norm that is seen, so that it acts
}


def main(policy: Path, output_dir: Path, n_prompts: int) -> None:
    config = online_config(policy, output_dir, per_device_train_batch_size=n_prompts, **SETTINGS)
    trainer = online_trainer(config)
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        result = {"steps": step_logs(trainer), "n_processes": trainer.accelerator.num_processes}
        (output_dir / "result.json").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
