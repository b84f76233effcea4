"""A run that is killed and resumed is the unbroken run, bit for bit, on CPU."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.training.checkpoint import latest_complete_checkpoint, list_checkpoints, verify_checkpoint
from posttrain.training.metrics import METRICS, read_metrics

REPOSITORY = Path(__file__).parents[2]
RUN = Path(__file__).with_name("resume_run.py")
N_STEPS, SAVE_STEPS = 36, 7  # as in resume_run.py: saves at 7, 14, 21, 28, 35, 36
TIMING = ("time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    assert _start("oreo", run_dir).wait() == 0
    return run_dir


@pytest.mark.parametrize("trial", range(5))
def test_run_equals_unbroken_run_after_kill_at_a_random_step(unbroken: Path, tmp_path: Path, trial: int) -> None:
    step = random.Random(trial).randint(SAVE_STEPS + 1, N_STEPS - 6)
    _kill_after_step("oreo", tmp_path / "run", step)
    assert _start("oreo", tmp_path / "run").wait() == 0
    _assert_same_run(tmp_path / "run", unbroken)


def test_run_with_dropout_equals_unbroken_run_after_kill(tmp_path: Path) -> None:
    assert _start("dropout", tmp_path / "unbroken").wait() == 0
    _kill_after_step("dropout", tmp_path / "run", step=19)
    assert _start("dropout", tmp_path / "run").wait() == 0
    _assert_same_run(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.parametrize("file", [".progress_0.json.partial", "COMPLETE"])
def test_run_equals_unbroken_run_after_kill_amid_a_checkpoint(unbroken: Path, tmp_path: Path, file: str) -> None:
    run_dir = tmp_path / "run"
    assert _start("oreo", run_dir, f"checkpoint-{3 * SAVE_STEPS}/{file}").wait() == -signal.SIGKILL
    # The third save was cut: at best its folder has its name but no marker, so the second one is the newest whole.
    assert latest_complete_checkpoint(run_dir) == run_dir / f"checkpoint-{2 * SAVE_STEPS}"
    assert _start("oreo", run_dir).wait() == 0
    _assert_same_run(run_dir, unbroken)


def test_run_equals_unbroken_run_when_newest_checkpoint_is_damaged(unbroken: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    _kill_after_step("oreo", run_dir, 4 * SAVE_STEPS)
    newest = latest_complete_checkpoint(run_dir)
    assert newest is not None
    weights = newest / "value/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the middle of the tensors
    weights.write_bytes(content)
    assert _start("oreo", run_dir).wait() == 0
    _assert_same_run(run_dir, unbroken)


def test_run_holds_no_pickle_when_it_has_ended(unbroken: Path) -> None:
    endings = {path.suffix for path in unbroken.rglob("*") if path.is_file()}
    assert endings == {".safetensors", ".json", ".jsonl", ""}  # "" is the marker COMPLETE


def test_two_newest_checkpoints_stay_when_the_limit_is_two(unbroken: Path) -> None:
    assert [path.name for path in list_checkpoints(unbroken)] == ["checkpoint-35", "checkpoint-36"]


def _start(kind: str, run_dir: Path, *kill_at_file: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(RUN), kind, str(run_dir), *kill_at_file]
    with run_dir.with_suffix(".log").open("a") as log:  # beside the run: to be read when a test fails
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _kill_after_step(kind: str, run_dir: Path, step: int) -> None:
    """SIGKILL from outside, at whatever the process is doing once it has logged `step`."""
    process = _start(kind, run_dir)
    while process.poll() is None:
        if (run_dir / METRICS).exists() and any(row["step"] >= step for row in read_metrics(run_dir / METRICS)):
            process.kill()
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


def _assert_same_run(resumed: Path, unbroken: Path) -> None:
    assert _history(resumed) == _history(unbroken)
    last = f"checkpoint-{N_STEPS}"
    verify_checkpoint(resumed / last)
    tensors = {path.relative_to(unbroken) for path in unbroken.glob("**/*.safetensors")}
    assert len(tensors) >= 3  # the weights, the last checkpoint's weights and its optimiser state
    for name in sorted(tensors):
        assert (resumed / name).read_bytes() == (unbroken / name).read_bytes(), name
    for name in ("rng_state_0.json", "scheduler.json", "progress_0.json", "optimizer.json"):
        assert (resumed / last / name).read_text() == (unbroken / last / name).read_text(), name


def _history(run_dir: Path) -> list[dict[str, float]]:
    rows = read_metrics(run_dir / METRICS)
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]
