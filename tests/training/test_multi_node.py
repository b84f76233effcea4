"""Training over two hosts with the launch files: the loss of one host, and what happens when a host loses power."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from posttrain.training.checkpoint import latest_complete_checkpoint
from posttrain.training.metrics import METRICS, read_metrics
from tests.training.tiny_oreo import trajectories, write_policy
from tests.training.two_hosts import Host, NoNamespacesError, two_hosts

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[2]
N_STEPS, SAVE_STEPS = 100, 10
SILENCE_S = 20  # ddp_timeout of the runs: after so long a silent host counts as lost
# Then the survivor calls the roll (10 s), raises, and its launcher ends: well within this, also on a busy machine. By
# default gloo would wait for 1800 s.
BOUND_S = 300
TIMING = ("time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts() as pair:
            yield pair
    except NoNamespacesError as reason:
        pytest.skip(f"this machine lets us make no two hosts: {reason}")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a run of two processes; the run folder and the steps are given beside it."""
    folder = tmp_path_factory.mktemp("config")
    write_policy(folder / "policy")
    rows = [
        {
            "task_id": str(row.row_id),
            "prompt": "",
            "input_ids": row.input_ids,
            "action_spans": [[row.is_action.index(True), len(row.input_ids)]],
            "reward": sum(row.reward),
            "finish_reason": "stop",
        }
        for row in trajectories(48)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": str(folder / "policy"),
        "train_data": [str(folder / "rows.jsonl")],
        "beta": 0.3,
        "alpha": 0.1,
        "policy_learning_rate": 1e-3,
        "value_learning_rate": 2e-3,
        "per_device_train_batch_size": 2,
        "max_steps": N_STEPS,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "save_total_limit": 2,
        "ddp_timeout": SILENCE_S,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


def test_two_hosts_under_zero2_give_the_steps_of_one_host(
    hosts: tuple[Host, Host], config: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install posttrain[deepspeed]")
    short = ["--max_steps", "6", "--save_strategy", "no"]
    _finish(_start_all(hosts, "accelerate.sh", config, tmp_path / "two", *short), tmp_path / "two")
    _finish(_start_all(hosts[:1], "accelerate.sh", config, tmp_path / "one", *short), tmp_path / "one")
    two, one = _history(tmp_path / "two"), _history(tmp_path / "one")
    assert len([row for row in one if "loss" in row]) == 6
    assert two == one  # bit for bit: the sum of two numbers has no order
    assert _weights(tmp_path / "two") == _weights(tmp_path / "one")


def test_survivor_names_the_lost_host_and_the_run_goes_on_when_it_is_back(
    hosts: tuple[Host, Host], config: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    survivor, _ = _start_all(hosts, "torchrun.sh", config, run_dir)
    _wait_for_step(run_dir, 2 * SAVE_STEPS + 5)
    hosts[1].cut_power()
    assert survivor.wait(timeout=BOUND_S) != 0
    told = run_dir.with_suffix(".host-a.log").read_text()
    newest = latest_complete_checkpoint(run_dir)
    assert newest is not None
    assert "LostProcessError: rank 0 of 2 on host-a lost its connection: " in told, told[-3000:]
    assert "no answer from rank 1 on host-b" in told
    assert f"newest checkpoint in {run_dir}: {newest.name}" in told
    assert "start the same command on every host with --resume_from_checkpoint latest" in told

    hosts[1].restore()
    _finish(_start_all(hosts, "torchrun.sh", config, run_dir, "--resume_from_checkpoint", "latest"), run_dir)
    assert f"Resuming from {newest}" in run_dir.with_suffix(".host-a.log").read_text()
    _finish(_start_all(hosts, "torchrun.sh", config, tmp_path / "unbroken"), tmp_path / "unbroken")
    assert _history(run_dir) == _history(tmp_path / "unbroken")
    assert _weights(run_dir) == _weights(tmp_path / "unbroken")


def _start_all(
    hosts: tuple[Host, ...], script: str, config: Path, run_dir: Path, *overrides: str
) -> list[subprocess.Popen[str]]:
    """The line of docs/scale_out.md on every host: two processes in all."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "N_HOSTS": str(len(hosts)),
        "PROCESSES_PER_HOST": str(2 // len(hosts)),
        "MAIN_HOST": hosts[0].address,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["bash", f"launch/multi_node/{script}", "oreo", "--config", str(config), "--output_dir", str(run_dir)]
    return [
        host.start(
            [*command, *overrides],
            cwd=REPOSITORY,
            env={**environment, "HOST_RANK": str(rank)},
            log=run_dir.with_suffix(f".{host.name}.log"),
        )
        for rank, host in enumerate(hosts)
    ]


def _finish(processes: list[subprocess.Popen[str]], run_dir: Path) -> None:
    codes = [process.wait(timeout=540) for process in processes]
    logs = "\n".join(log.read_text()[-3000:] for log in run_dir.parent.glob(f"{run_dir.name}.*.log"))
    assert codes == [0] * len(processes), logs


def _wait_for_step(run_dir: Path, step: int) -> None:
    end = time.monotonic() + 540
    while not ((run_dir / METRICS).exists() and any(row["step"] >= step for row in read_metrics(run_dir / METRICS))):
        assert time.monotonic() < end, run_dir.with_suffix(".host-a.log").read_text()[-3000:]
        time.sleep(0.05)


def _history(run_dir: Path) -> list[dict[str, float]]:
    rows = read_metrics(run_dir / METRICS)
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


def _weights(run_dir: Path) -> dict[str, bytes]:
    return {network: (run_dir / network / "model.safetensors").read_bytes() for network in ("policy", "value")}
