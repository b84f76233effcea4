"""A run that is killed and resumed is the unbroken run, bit for bit, on CPU."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from posttrain.training.checkpoint import latest_complete_checkpoint, list_checkpoints, verify_checkpoint
from posttrain.training.metrics import METRICS, read_metrics
from tests.training import resume_run

REPOSITORY = Path(__file__).parents[2]
N_STEPS, SAVE_STEPS = resume_run.SETTINGS["max_steps"], resume_run.SETTINGS["save_steps"]
TIMING = ("time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
# Twenty of the steps 1 to 34, by a fixed seed; the ids of the tests name them. The last ones are left out: the run
# could end before the signal comes.
KILL_AFTER_STEPS = sorted(random.Random(2412).sample(range(1, N_STEPS - 1), 20))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def warm_start() -> None:
    """Starts every run as a process of its own, forked from one that has imported the libraries and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([resume_run.__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))  # Python 3.11 does not hand sys.path to the server
        context.Process().start()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    assert _exit_code("oreo", run_dir) == 0
    return run_dir


@pytest.mark.parametrize("step", KILL_AFTER_STEPS)
def test_run_equals_unbroken_run_after_kill_at_a_random_step(unbroken: Path, tmp_path: Path, step: int) -> None:
    _kill_after_step("oreo", tmp_path / "run", step)
    assert _exit_code("oreo", tmp_path / "run") == 0
    _assert_same_run(tmp_path / "run", unbroken)


def test_run_with_dropout_equals_unbroken_run_after_kill(tmp_path: Path) -> None:
    assert _exit_code("dropout", tmp_path / "unbroken") == 0
    _kill_after_step("dropout", tmp_path / "run", step=19)
    assert _exit_code("dropout", tmp_path / "run") == 0
    _assert_same_run(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.parametrize("file", [".*.progress_0.json.partial", "COMPLETE"])
def test_run_equals_unbroken_run_after_kill_amid_a_checkpoint(unbroken: Path, tmp_path: Path, file: str) -> None:
    run_dir = tmp_path / "run"
    assert _exit_code("oreo", run_dir, f"checkpoint-{3 * SAVE_STEPS}/{file}") == -signal.SIGKILL
    # The third save was cut: at best its folder has its name but no marker, so the second one is the newest whole.
    assert latest_complete_checkpoint(run_dir) == run_dir / f"checkpoint-{2 * SAVE_STEPS}"
    assert _exit_code("oreo", run_dir) == 0
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
    assert _exit_code("oreo", run_dir) == 0
    _assert_same_run(run_dir, unbroken)


def test_run_holds_no_pickle_when_it_has_ended(unbroken: Path) -> None:
    endings = {path.suffix for path in unbroken.rglob("*") if path.is_file()}
    assert endings == {".safetensors", ".json", ".jsonl", ""}  # "" is the marker COMPLETE


def test_two_newest_checkpoints_stay_when_the_limit_is_two(unbroken: Path) -> None:
    assert [path.name for path in list_checkpoints(unbroken)] == ["checkpoint-35", "checkpoint-36"]


def _start(kind: str, run_dir: Path, *kill_at_file: str) -> BaseProcess:
    process = multiprocessing.get_context("forkserver").Process(
        target=resume_run.main, args=(kind, run_dir, *kill_at_file)
    )
    process.start()
    return process


def _exit_code(kind: str, run_dir: Path, *kill_at_file: str) -> int | None:
    process = _start(kind, run_dir, *kill_at_file)
    process.join()
    return process.exitcode


def _kill_after_step(kind: str, run_dir: Path, step: int) -> None:
    """SIGKILL from outside, at whatever the process is doing once it has finished `step`."""
    process = _start(kind, run_dir)
    steps = run_dir.with_suffix(".steps")
    while process.is_alive() and not (steps.exists() and steps.stat().st_size >= step):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"


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
