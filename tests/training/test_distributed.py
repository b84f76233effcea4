"""Two real CPU processes against one: the same rows, the same losses, the same clipped updates, the same weights."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training import distributed_run
from tests.training.tiny_oreo import write_policy

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINES = {
    "ddp": "DistributedDataParallel",
    "zero1": "DeepSpeedEngine",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
    "fsdp2": "FSDPActorCritic",
}
SHARDS_WEIGHTS = ("zero3", "fsdp2")

# Both sides run in float32 (2^-24 = 6e-8 per operation) and add the same numbers in another order: micro-batches of 4
# rows here, of 2 rows on each of two ranks there. One forward pass differs by a few units in the last place; five
# Adam steps, each of which divides by sqrt(v), were seen to raise that to 1.3e-6 of the loss.
FIRST_STEP_RTOL = 1e-6
LATER_STEPS_RTOL = 2e-5
# A weight moves by about its learning rate per step whatever the size of its gradient, so where a gradient is almost 0
# its rounding error decides: six steps of 1e-2 or 2e-2 move a weight by up to 0.12, errors stay far below.
WEIGHTS_ATOL = 2e-3


@dataclass(frozen=True)
class Run:
    folder: Path
    result: dict[str, Any]

    def rows_of_steps(self) -> list[set[int]]:
        """The rows of each optimiser step over all ranks."""
        rows_by_rank = [json.loads(path.read_text()) for path in sorted(self.folder.glob("rows-*.json"))]
        n_micro = distributed_run.N_MICRO_BATCHES
        return [
            {row for rows in rows_by_rank for micro in rows[step * n_micro : (step + 1) * n_micro] for row in micro}
            for step in range(distributed_run.N_STEPS)
        ]

    def column(self, name: str) -> list[float]:
        return [step[name] for step in self.result["steps"]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def one_process(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("one_process")
    finished = _start("single", policy, folder, batch_size=4)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return _read(folder)


@pytest.fixture(scope="module", params=list(ENGINES))
def two_processes(request: pytest.FixtureRequest, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    if request.param.startswith("zero"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install posttrain[deepspeed]")
    folder = tmp_path_factory.mktemp(request.param)
    finished = _start(request.param, policy, folder, batch_size=2)
    assert finished.returncode == 0, finished.stderr[-3000:]
    run = _read(folder)
    assert run.result["n_processes"] == 2
    assert run.result["engine"] == ENGINES[request.param]
    assert run.result["sharded"] == (0.5 if request.param in SHARDS_WEIGHTS else 1.0)
    return run


def test_two_processes_step_through_the_same_rows_in_the_same_order(two_processes: Run, one_process: Run) -> None:
    assert two_processes.rows_of_steps() == one_process.rows_of_steps()
    assert all(len(rows) == distributed_run.GLOBAL_BATCH for rows in two_processes.rows_of_steps())


def test_two_processes_give_the_losses_of_one(two_processes: Run, one_process: Run) -> None:
    for name in ("loss", "loss/value", "loss/policy", "loss/kl_ref", "value/mean", "policy/entropy"):
        for step, (here, there) in enumerate(zip(two_processes.column(name), one_process.column(name), strict=True)):
            rtol = FIRST_STEP_RTOL if step == 0 else LATER_STEPS_RTOL
            assert math.isclose(here, there, rel_tol=rtol, abs_tol=rtol), (name, step, here, there)


def test_the_value_is_zero_at_step_0_of_two_processes(two_processes: Run) -> None:
    # V = 0 and log-ratio = 0: both squared residuals are R^2, and 5 of the 8 rewards are 1.
    first = two_processes.result["steps"][0]
    assert first["value/mean"] == 0.0
    assert first["policy/log_ratio"] == 0.0
    assert first["reward"] == 0.625
    assert math.isclose(first["loss"], 2 * 0.625, rel_tol=FIRST_STEP_RTOL)


def test_two_processes_see_the_norms_of_one_and_clip_both(two_processes: Run, one_process: Run) -> None:
    for name, max_norm in (("policy/grad_norm", 0.3), ("value/grad_norm", 0.7)):
        assert min(two_processes.column(name)) > max_norm  # so both clips acted in every step
        for here, there in zip(two_processes.column(name), one_process.column(name), strict=True):
            assert math.isclose(here, there, rel_tol=LATER_STEPS_RTOL), name


@pytest.mark.parametrize("network", ["policy", "value"])
def test_two_processes_end_with_the_weights_of_one(two_processes: Run, one_process: Run, network: str) -> None:
    here = load_file(two_processes.folder / network / "model.safetensors")
    there = load_file(one_process.folder / network / "model.safetensors")
    assert here.keys() == there.keys()
    for name, weight in there.items():
        torch.testing.assert_close(
            here[name], weight, rtol=0, atol=WEIGHTS_ATOL, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_all_ranks_stop_when_one_of_them_meets_a_row_that_is_not_finite(
    engine: str, policy: Path, tmp_path: Path, one_process: Run
) -> None:
    poisoned = sorted(one_process.rows_of_steps()[2])[0]
    finished = _start(engine, policy, tmp_path, batch_size=2, poisoned_row=poisoned)
    assert finished.returncode != 0
    assert "step 2 was stopped before the optimiser moved" in finished.stderr
    assert f"is NaN or Inf on rows [{poisoned}]" in finished.stderr
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("non_finite/step-2/rank-*.json")]
    assert sorted((len(report["row_ids"]), report["row_ids"]) for report in reports) == [(0, []), (1, [poisoned])]
    assert not (tmp_path / "result.json").exists()


def test_two_processes_under_zero3_give_the_lora_critic_of_one(policy: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install posttrain[deepspeed]")
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    runs = []
    for engine, batch_size in (("single", 4), ("zero3", 2)):
        (tmp_path / engine).mkdir()
        finished = _start(engine, policy, tmp_path / engine, batch_size=batch_size, value_lora_rank=4)
        assert finished.returncode == 0, finished.stderr[-3000:]
        runs.append(_read(tmp_path / engine))
    one, two = runs
    for step, (here, there) in enumerate(zip(two.column("loss"), one.column("loss"), strict=True)):
        assert math.isclose(here, there, rel_tol=FIRST_STEP_RTOL if step == 0 else LATER_STEPS_RTOL), step
    for file in ("model.safetensors", "lora/weights.safetensors"):  # both written from weights gathered over the ranks
        here, there = (load_file(run.folder / "value" / file) for run in (two, one))
        assert here.keys() == there.keys()
        for name, weight in there.items():
            torch.testing.assert_close(here[name], weight, rtol=0, atol=WEIGHTS_ATOL)


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_two_processes_on_packed_rows_give_the_losses_of_one_on_padded_rows(
    engine: str, policy: Path, tmp_path: Path, one_process: Run
) -> None:
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install posttrain[deepspeed]")
    finished = _start(engine, policy, tmp_path, batch_size=2, padding_free=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    packed = _read(tmp_path)
    assert packed.result["engine"] == ENGINES[engine]
    for name in ("loss", "loss/value", "loss/policy", "loss/kl_ref"):
        for step, (here, there) in enumerate(zip(packed.column(name), one_process.column(name), strict=True)):
            rtol = FIRST_STEP_RTOL if step == 0 else LATER_STEPS_RTOL
            assert math.isclose(here, there, rel_tol=rtol, abs_tol=rtol), (name, step, here, there)


@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        ("ddp", {"reference_from": "cached_log_probs", "alpha": 0.0}),
        ("zero3", {"reference_from": "cached_hidden", "alpha_forward": 0.2}),
        ("ddp", {"reference_from": "adapters_off", "policy_lora_rank": 4}),
        ("zero3", {"reference_from": "adapters_off", "policy_lora_rank": 4}),
    ],
)
def test_two_processes_with_a_reference_from_elsewhere_are_one_with_a_live_one(
    policy: Path, tmp_path: Path, engine: str, changes: dict[str, Any]
) -> None:
    if engine == "zero3":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install posttrain[deepspeed]")
    if "policy_lora_rank" in changes:
        pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    runs = []
    for name, batch_size, own in (("single", 4, {**changes, "reference_from": "live"}), (engine, 2, changes)):
        (tmp_path / name).mkdir()
        finished = _start(name, policy, tmp_path / name, batch_size=batch_size, **own)
        assert finished.returncode == 0, finished.stderr[-3000:]
        runs.append(_read(tmp_path / name))
    one, two = runs
    assert two.result["n_processes"] == 2
    for name in {"loss", "loss/policy", "loss/kl_ref", "loss/kl_forward"} & two.result["steps"][0].keys():
        for step, (here, there) in enumerate(zip(two.column(name), one.column(name), strict=True)):
            rtol = FIRST_STEP_RTOL if step == 0 else LATER_STEPS_RTOL
            assert math.isclose(here, there, rel_tol=rtol, abs_tol=rtol), (name, step, here, there)
    here, there = (load_file(run.folder / "policy" / "model.safetensors") for run in (two, one))
    assert here.keys() == there.keys()
    for name, weight in there.items():
        torch.testing.assert_close(here[name], weight, rtol=0, atol=WEIGHTS_ATOL)


def _start(
    engine: str,
    policy: Path,
    folder: Path,
    *,
    batch_size: int,
    poisoned_row: int | None = None,
    **changes: Any,
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"launch/accelerate/{engine}.yaml", "--main_process_port", str(_free_port())]
    command += ["-m", "tests.training.distributed_run", str(policy), str(folder), str(batch_size)]
    command += [json.dumps(changes)]
    command += [] if poisoned_row is None else [str(poisoned_row)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500)


def _read(folder: Path) -> Run:
    return Run(folder, json.loads((folder / "result.json").read_text()))


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
