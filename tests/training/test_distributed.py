"""Two real CPU processes against one: the same rows, the same losses, the same clipped updates, the same weights."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training import distributed_run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINES = {
    "ddp": "DistributedDataParallel",
    "zero1": "DeepSpeedEngine",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
    "fsdp2": "FSDP",
}
REFUSED = ("fsdp2", "two_adapters")
SHARDS_WEIGHTS = ("zero3", "fsdp2")
ROLES = distributed_run.ROLES
OF_OREO = ("loss", "loss/value", "loss/policy", "value/mean", "policy/entropy")
LOGGED = {
    "separate": (*OF_OREO, "loss/kl_ref"),
    "lora": (*OF_OREO, "loss/kl_ref"),
    "adapters_off": (*OF_OREO, "loss/kl_ref"),
    "two_adapters": (*OF_OREO, "loss/kl_ref"),
    "shared_trunk": (*OF_OREO, "loss/kl_ref"),
    "cached_hidden": (*OF_OREO, "loss/kl_ref", "loss/kl_forward"),
    "cached_log_probs": OF_OREO,
    "dpo": ("loss", "rewards/margins", "rewards/chosen", "logps/chosen", "logps/rejected", "entropy"),
}
MAX_NORMS = {  # of the clips in distributed_run
    "separate": {"policy/grad_norm": 0.3, "value/grad_norm": 0.7},
    "lora": {"policy/grad_norm": 0.3, "value/grad_norm": 0.7},
    "dpo": {"grad_norm": 1.0},
}
NETWORKS = ("policy/model.safetensors", "value/model.safetensors")
WEIGHTS = {
    **dict.fromkeys(distributed_run.OREO_ROLES, NETWORKS),
    "lora": (*NETWORKS, "value/lora/weights.safetensors"),
    "two_adapters": (*NETWORKS, "policy/lora/weights.safetensors", "value/lora/weights.safetensors"),
    "dpo": ("model.safetensors",),
}

# Both sides run in float32 (2^-24 = 6e-8 per operation) and add the same numbers in another order: micro-batches of 4
# rows here, of 2 rows on each of two ranks there. One forward pass differs by a few units in the last place; five
# Adam steps, each of which divides by sqrt(v), were seen to raise that to 1.7e-6 of the loss.
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


Runs = dict[str, Run]  # role -> its run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distributed_run.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def one_process(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return _train_all_roles("single", inputs, tmp_path_factory.mktemp("one_process"), batch_size=4)


@pytest.fixture(scope="module", params=list(ENGINES))
def two_processes(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    engine = request.param
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install posttrain[deepspeed]")
    runs = _train_all_roles(engine, inputs, tmp_path_factory.mktemp(engine), batch_size=2)
    for run in runs.values():
        assert run.result["n_processes"] == 2
        assert run.result["engine"].startswith(ENGINES[engine])
        assert run.result["sharded"] == (0.5 if engine in SHARDS_WEIGHTS else 1.0)
    return runs


@pytest.mark.parametrize("role", distributed_run.OREO_ROLES)
def test_two_processes_step_through_the_same_rows_in_the_same_order(
    two_processes: Runs, one_process: Runs, role: str
) -> None:
    rows = two_processes[role].rows_of_steps()
    assert rows == one_process[role].rows_of_steps()
    assert all(len(rows_of_step) == distributed_run.GLOBAL_BATCH for rows_of_step in rows)


@pytest.mark.parametrize("role", ROLES)
def test_two_processes_log_at_steps_0_to_5_what_one_does(two_processes: Runs, one_process: Runs, role: str) -> None:
    two, one = two_processes[role], one_process[role]
    for name in LOGGED[role]:
        for step, (here, there) in enumerate(zip(two.column(name), one.column(name), strict=True)):
            rtol = FIRST_STEP_RTOL if step == 0 else LATER_STEPS_RTOL
            assert math.isclose(here, there, rel_tol=rtol, abs_tol=rtol), (name, step, here, there)
    assert len(two.column("loss")) == distributed_run.N_STEPS


@pytest.mark.parametrize("role", distributed_run.OREO_ROLES)
def test_the_value_is_zero_at_step_0_of_two_processes(two_processes: Runs, role: str) -> None:
    # V = 0 and log-ratio = 0: both squared residuals are R^2, and 5 of the 8 rewards are 1.
    first = two_processes[role].result["steps"][0]
    assert first["value/mean"] == 0.0
    # A cache was filled in batches of other shapes: units in the last place of log-probabilities near -4, summed.
    assert abs(first["policy/log_ratio"]) <= (1e-6 if role.startswith("cached") else 0.0)
    assert first["reward"] == 0.625
    assert math.isclose(first["loss"], 2 * 0.625, rel_tol=FIRST_STEP_RTOL)


def test_dpo_starts_at_log_2_and_moves_on_two_processes(two_processes: Runs) -> None:
    losses = two_processes["dpo"].column("loss")
    assert math.isclose(losses[0], math.log(2), rel_tol=FIRST_STEP_RTOL)  # policy = reference: −log σ(0)
    assert max(abs(loss - math.log(2)) for loss in losses) > 0.01  # so equal later losses say something


@pytest.mark.parametrize("role", MAX_NORMS)
def test_two_processes_see_the_norms_of_one_and_clip_all(two_processes: Runs, one_process: Runs, role: str) -> None:
    two, one = two_processes[role], one_process[role]
    for name, max_norm in MAX_NORMS[role].items():
        assert min(two.column(name)) > max_norm  # so the clip acted in every step
        for here, there in zip(two.column(name), one.column(name), strict=True):
            assert math.isclose(here, there, rel_tol=LATER_STEPS_RTOL), name


@pytest.mark.parametrize("role", ROLES)
def test_two_processes_end_with_the_weights_of_one(two_processes: Runs, one_process: Runs, role: str) -> None:
    for file in WEIGHTS[role]:
        here, there = (load_file(runs[role].folder / file) for runs in (two_processes, one_process))
        assert here.keys() == there.keys(), file
        for name, weight in there.items():
            torch.testing.assert_close(
                here[name], weight, rtol=0, atol=WEIGHTS_ATOL, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_all_ranks_stop_when_one_of_them_meets_a_row_that_is_not_finite(
    engine: str, inputs: Path, tmp_path: Path, one_process: Runs
) -> None:
    poisoned = sorted(one_process["separate"].rows_of_steps()[2])[0]
    finished = _start(engine, inputs, tmp_path, batch_size=2, roles=["separate"], poisoned_row=poisoned)
    assert finished.returncode != 0
    assert "step 2 was stopped before the optimiser moved" in finished.stderr
    assert f"is NaN or Inf on rows [{poisoned}]" in finished.stderr
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("separate/non_finite/step-2/rank-*.json")]
    assert sorted((len(report["row_ids"]), report["row_ids"]) for report in reports) == [(0, []), (1, [poisoned])]
    assert not (tmp_path / "separate/result.json").exists()


def _train_all_roles(engine: str, inputs: Path, folder: Path, *, batch_size: int) -> Runs:
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    roles = [role for role in ROLES if (engine, role) != REFUSED]
    finished = _start(engine, inputs, folder, batch_size=batch_size, roles=roles)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return {role: _read(folder / role) for role in roles}


@pytest.fixture(autouse=True)
def _skip_what_an_engine_refuses(request: pytest.FixtureRequest) -> None:
    asked = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if (asked.get("two_processes"), asked.get("role")) == REFUSED:
        pytest.skip("FSDP2 cannot shard a weight that two networks share, and refuses it (tests/models/test_roles.py)")


def _read(folder: Path) -> Run:
    return Run(folder, json.loads((folder / "result.json").read_text()))


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_two_processes_on_packed_rows_give_the_losses_of_one_on_padded_rows(
    engine: str, inputs: Path, tmp_path: Path, one_process: Runs
) -> None:
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install posttrain[deepspeed]")
    finished = _start(engine, inputs, tmp_path, batch_size=2, roles=[distributed_run.PACKED])
    assert finished.returncode == 0, finished.stderr[-3000:]
    packed = _read(tmp_path / distributed_run.PACKED)
    assert packed.result["engine"].startswith(ENGINES[engine])
    padded = one_process["separate"]
    for name in ("loss", "loss/value", "loss/policy", "loss/kl_ref"):
        for step, (here, there) in enumerate(zip(packed.column(name), padded.column(name), strict=True)):
            rtol = FIRST_STEP_RTOL if step == 0 else LATER_STEPS_RTOL
            assert math.isclose(here, there, rel_tol=rtol, abs_tol=rtol), (name, step, here, there)


def test_two_processes_steer_the_coefficient_of_the_kl_as_one_does(inputs: Path, tmp_path: Path) -> None:
    # From the start, and from a checkpoint of one process: the second rank finds no progress of its own in it.
    steered, steered_on = distributed_run.STEERED, distributed_run.STEERED_ON
    alone = _start("single", inputs, tmp_path / "one", batch_size=4, roles=[steered])
    assert alone.returncode == 0, alone.stderr[-3000:]
    one = _read(tmp_path / "one" / steered)
    shutil.copytree(one.folder / "checkpoint-3", inputs / "checkpoint-3")
    together = _start("ddp", inputs, tmp_path / "two", batch_size=2, roles=[steered, steered_on])
    assert together.returncode == 0, together.stderr[-3000:]
    for role in (steered, steered_on):
        two = _read(tmp_path / "two" / role)
        assert two.result["n_processes"] == 2
        for name in ("kl_coefficient", "loss/kl_ref", "loss/policy", "loss"):
            for step, (here, there) in enumerate(zip(two.column(name), one.column(name), strict=True)):
                assert math.isclose(here, there, rel_tol=LATER_STEPS_RTOL, abs_tol=LATER_STEPS_RTOL), (name, step)
    start, _, _, at_checkpoint, *_, end = one.column("kl_coefficient")
    assert max(start / at_checkpoint, at_checkpoint / start) > 1.1  # so a rank that had forgotten it would show
    assert max(end / at_checkpoint, at_checkpoint / end) > 1.1


def _start(
    engine: str,
    inputs: Path,
    folder: Path,
    *,
    batch_size: int,
    roles: Sequence[str],
    poisoned_row: int | None = None,
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"launch/accelerate/{engine}.yaml", "--main_process_port", str(_free_port())]
    command += ["-m", "tests.training.distributed_run", str(inputs), str(folder), str(batch_size), ",".join(roles)]
    command += [] if poisoned_row is None else [str(poisoned_row)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
