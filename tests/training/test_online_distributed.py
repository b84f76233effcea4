"""Two real CPU processes against one: the same samples, the same logs, the same weights."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

REPOSITORY = Path(__file__).resolve().parents[2]


def launched(engine: str, policy: Path, folder: Path, n_prompts: int) -> subprocess.CompletedProcess[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"launch/accelerate/{engine}.yaml", "--main_process_port", str(port)]
    command += ["-m", "tests.training.online_run", str(policy), str(folder), str(n_prompts)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_sample_log_and_learn_what_one_does(policy_folder: Path, tmp_path: Path) -> None:
    results = {}
    for engine, n_prompts in (("single", 4), ("ddp", 2)):
        finished = launched(engine, policy_folder, tmp_path / engine, n_prompts)
        assert finished.returncode == 0, finished.stderr[-3000:]
        results[engine] = json.loads((tmp_path / engine / "result.json").read_text())
    assert results["ddp"]["n_processes"] == 2
    # Float64 weights; the sampler's log-probs and the advantages are float32, the same in both.
    for here, there in zip(results["ddp"]["steps"], results["single"]["steps"], strict=True):
        assert here["policy/grad_norm"] > 0.3
        for name in ("loss", "loss/policy", "loss/kl_ref", "policy/clip_fraction", "policy/grad_norm", "reward/even"):
            assert math.isclose(here.get(name, 0), there.get(name, 0), rel_tol=1e-7, abs_tol=1e-9), name
        # Rewards are logged in the first step of a round, by kind of prompt over the ranks that had such prompts.
        assert {name for name in here if name.startswith("reward")} == {n for n in there if n.startswith("reward")}
    here, there = (load_file(tmp_path / engine / "policy/model.safetensors") for engine in ("ddp", "single"))
    for name, weight in there.items():
        torch.testing.assert_close(here[name], weight, rtol=0, atol=1e-8, msg=name)


def test_weights_that_would_be_sharded_are_refused(policy_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install posttrain[deepspeed]")
    finished = launched("zero3", policy_folder, tmp_path, 2)
    assert finished.returncode != 0
    assert "every process samples from a whole policy: launch with plain data parallelism" in finished.stderr
