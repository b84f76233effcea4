from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.training.dpo import DpoBaselineConfig
from posttrain.training.oreo_config import OreoConfig
from posttrain.training.sft import SftConfig
from posttrain.training.without_accelerator import choose_cpu

OREO = {"beta": 0.1, "alpha": 0.1, "policy_learning_rate": 1e-5, "value_learning_rate": 1e-5}
pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")


@pytest.mark.parametrize(
    ("config_class", "extra"), [(SftConfig, {}), (DpoBaselineConfig, {"max_pairs_per_task": 1}), (OreoConfig, OREO)]
)
def test_a_gpu_recipe_with_bf16_becomes_a_cpu_run_without_an_accelerator(
    config_class: type, extra: dict[str, float], tmp_path: Path
) -> None:
    # transformers alone raises "Your setup doesn't support bf16/gpu" here.
    config = config_class(
        model="m", train_data=["d.jsonl"], output_dir=str(tmp_path), bf16=True, report_to="none", **extra
    )
    assert config.use_cpu
    assert config.device == torch.device("cpu")


def test_deepspeed_keeps_its_engine_and_talks_over_gloo_without_an_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SftConfig(model="m", train_data=["d.jsonl"], output_dir=str(tmp_path), report_to="none")
    config.use_cpu = False
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # what a launcher with a DeepSpeed config sets
    choose_cpu(config)
    assert (config.use_cpu, config.ddp_backend) == (False, "gloo")
