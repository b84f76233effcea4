from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.provenance import write_json
from posttrain.training.checkpoint import (
    DamagedCheckpointError,
    latest_complete_checkpoint,
    list_checkpoints,
    rotate_checkpoints,
    verify_checkpoint,
    write_checkpoint,
)

CHANGES_DISK = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def test_checkpoint_verifies_when_nothing_happened_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    write_checkpoint(folder, _writer(b"weights"))
    verify_checkpoint(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {"weights.bin", "nested/state.json"}
    # printf weights | sha256sum
    expected = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert manifest["weights.bin"] == {"bytes": 7, "sha256": expected}


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda folder: (folder / "weights.bin").write_bytes(b"weightz"), "weights.bin has changed"),
        (lambda folder: (folder / "weights.bin").write_bytes(b"wei"), "weights.bin has 3 bytes, 7 were written"),
        (lambda folder: (folder / "nested/state.json").unlink(), "state.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json is missing or not the file"),
        (lambda folder: (folder / "COMPLETE").unlink(), "no COMPLETE marker"),
    ],
)
def test_verify_names_the_file_when_it_is_damaged(
    tmp_path: Path, harm: Callable[[Path], object], complaint: str
) -> None:
    folder = tmp_path / "checkpoint-1"
    write_checkpoint(folder, _writer(b"weights"))
    harm(folder)
    with pytest.raises(DamagedCheckpointError, match=complaint):
        verify_checkpoint(folder)


def test_latest_falls_back_and_says_so_when_newer_ones_are_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (8, 9, 10):  # as text, "10" sorts before "8": steps are compared as numbers
        write_checkpoint(tmp_path / f"checkpoint-{step}", _writer(b"weights"))
    (tmp_path / "checkpoint-10/COMPLETE").unlink()
    (tmp_path / "checkpoint-9/weights.bin").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert latest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    assert "checkpoint-10" in caplog.messages[0]
    assert "no COMPLETE marker" in caplog.messages[0]
    assert "weights.bin has 0 bytes" in caplog.messages[1]


def test_latest_is_none_when_the_run_has_not_saved(tmp_path: Path) -> None:
    assert latest_complete_checkpoint(tmp_path / "absent") is None


def test_nothing_appears_when_the_writer_raises(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path / "checkpoint-1", fail)
    assert list_checkpoints(tmp_path) == []


def test_new_checkpoint_is_never_half_there_when_killed_at_any_disk_operation(tmp_path: Path) -> None:
    n_operations, is_killed, n_absent = 0, True, 0
    while is_killed:
        folder = tmp_path / str(n_operations) / "checkpoint-2"
        folder.parent.mkdir()
        is_killed = _killed_while_writing(folder, b"new", n_operations)
        found = latest_complete_checkpoint(folder.parent)
        assert found in (None, folder)
        n_absent += found is None
        write_checkpoint(folder, _writer(b"new"))  # what the kill left is no obstacle
        verify_checkpoint(folder)
        n_operations += 1
    assert found == folder
    # At least staging, 2 files, 1 folder, manifest, rename and marker come before the checkpoint counts as whole.
    assert n_absent >= 7


def test_replaced_checkpoint_is_old_or_new_or_absent_when_killed_at_any_disk_operation(tmp_path: Path) -> None:
    n_operations, is_killed = 0, True
    seen = set()
    while is_killed:
        run_dir = tmp_path / str(n_operations)
        write_checkpoint(run_dir / "checkpoint-1", _writer(b"first"))
        write_checkpoint(run_dir / "checkpoint-2", _writer(b"old"))
        is_killed = _killed_while_writing(run_dir / "checkpoint-2", b"new", n_operations)
        found = latest_complete_checkpoint(run_dir)
        assert found is not None
        seen.add((found / "weights.bin").read_bytes())
        n_operations += 1
    assert seen == {b"old", b"first", b"new"}


def test_rotation_keeps_the_newest_and_the_best_when_over_the_limit(tmp_path: Path) -> None:
    _write_steps(tmp_path, 10, 20, 30, 40)
    rotate_checkpoints(tmp_path, newest=tmp_path / "checkpoint-40", keep=2, protected=[tmp_path / "checkpoint-10"])
    assert _steps(tmp_path) == ["checkpoint-10", "checkpoint-40"]


def test_rotation_drops_later_steps_first_when_the_run_was_resumed_before_them(tmp_path: Path) -> None:
    # 30 is of the history before the resume from 20; the run has just saved 25.
    _write_steps(tmp_path, 10, 20, 25, 30)
    rotate_checkpoints(tmp_path, newest=tmp_path / "checkpoint-25", keep=2)
    assert _steps(tmp_path) == ["checkpoint-20", "checkpoint-25"]


def test_rotation_deletes_nothing_when_under_the_limit(tmp_path: Path) -> None:
    _write_steps(tmp_path, 10, 20)
    rotate_checkpoints(tmp_path, newest=tmp_path / "checkpoint-20", keep=3)
    assert _steps(tmp_path) == ["checkpoint-10", "checkpoint-20"]


def test_json_refuses_when_state_is_an_object(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"scheduler\.json: Object of type object.*safetensors and JSON only"):
        write_json(tmp_path / "scheduler.json", {"lambda": object()})


def _writer(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(content)
        (folder / "nested").mkdir()
        (folder / "nested/state.json").write_text("{}")

    return write


def _killed_while_writing(folder: Path, content: bytes, n_allowed: int) -> bool:
    """Write a checkpoint in a forked process that SIGKILLs itself at its disk operation number `n_allowed`."""
    child = os.fork()
    if child == 0:
        left = [n_allowed]

        def hook(event: str, args: tuple[object, ...]) -> None:
            if event in CHANGES_DISK and (event != "open" or _is_for_writing(args)):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        write_checkpoint(folder, _writer(content))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _is_for_writing(args: tuple[object, ...]) -> bool:
    flags = args[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _write_steps(run_dir: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(run_dir / f"checkpoint-{step}", _writer(b"weights"))


def _steps(run_dir: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run_dir)]
