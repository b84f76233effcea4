"""Cuts and flipped bits in the files of a real run's checkpoints: each is seen, and the last good one is taken."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.training.checkpoint import DamagedCheckpointError, latest_complete_checkpoint, verify_checkpoint
from tests.training.tiny_oreo import step_logs, tiny_config, tiny_trainer, trajectories

N_TRIALS = 50
SEED = 20241216
SETTINGS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "use_cpu": True, "value_warmup_steps": 1}


@pytest.fixture(scope="module")
def run_dir(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished OREO run with checkpoint-2, -4 and -6."""
    folder = tmp_path_factory.mktemp("run")
    tiny_trainer(tiny_config(policy_folder, folder, **SETTINGS), trajectories(24)).train()
    return folder


def test_fifty_random_cuts_and_flips_are_all_seen_and_the_checkpoint_before_is_chosen(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest, before = run_dir / "checkpoint-6", run_dir / "checkpoint-4"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert {"model.safetensors", "optimizer.safetensors", "manifest.json", "COMPLETE"} <= {file.name for file in files}
    rng = random.Random(SEED)
    n_detected, missed = 0, []
    for trial in range(N_TRIALS):
        file, damage = rng.choice(files), rng.choice((cut, flip_bit))
        whole = file.read_bytes()
        what = f"seed {SEED}, trial {trial}: {damage.__name__} of {file.relative_to(newest)}"
        file.write_bytes(damage(whole, rng))
        caplog.clear()
        chosen = latest_complete_checkpoint(run_dir)
        file.write_bytes(whole)
        if chosen == before and caplog.messages[0].startswith("Passing over checkpoint-6: "):
            n_detected += 1
        else:
            missed.append(what)
    assert (n_detected, missed) == (N_TRIALS, [])
    assert latest_complete_checkpoint(run_dir) == newest  # put back as it was, it is good again


def test_every_cut_and_every_flip_of_the_marker_is_seen(run_dir: Path, tmp_path: Path) -> None:
    # The marker vouches for the manifest, the manifest for all other files; nothing vouches for the marker itself. A
    # flipped bit can make it invalid UTF-8, or turn its line break into another kind of white space.
    folder = tmp_path / "checkpoint-6"
    shutil.copytree(run_dir / folder.name, folder)
    marker = folder / "COMPLETE"
    whole = marker.read_bytes()
    flips = [_flipped(whole, bit) for bit in range(8 * len(whole))]
    cuts = [whole[:n_bytes] for n_bytes in range(len(whole))]
    for damaged in (*flips, *cuts):
        marker.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError):
            verify_checkpoint(folder)


def test_run_goes_on_from_the_last_good_checkpoint_and_says_so_when_two_newer_ones_are_damaged(
    run_dir: Path, policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged_run = tmp_path / "run"
    shutil.copytree(run_dir, damaged_run)
    _damage(damaged_run / "checkpoint-6/optimizer.safetensors", flip_bit)
    _damage(damaged_run / "checkpoint-4/policy/model.safetensors", cut)
    trainer = tiny_trainer(tiny_config(policy_folder, damaged_run, **SETTINGS), trajectories(24))
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint="latest")
    told = [record.getMessage() for record in caplog.records if record.name.startswith("posttrain.")]
    assert [message.partition(":")[0] for message in told[:2]] == [
        "Passing over checkpoint-6",
        "Passing over checkpoint-4",
    ]
    assert told[0].endswith("optimizer.safetensors has changed since it was written: its sha256 differs")
    assert told[2] == f"Resuming from {damaged_run / 'checkpoint-2'}"
    assert [step["step"] for step in step_logs(trainer)] == [1, 2, 3, 4, 5, 6]  # 1 and 2 are the checkpoint's history
    for file in ("policy/model.safetensors", "value/model.safetensors", "optimizer.safetensors"):
        again, once = (folder / "checkpoint-6" / file for folder in (damaged_run, run_dir))
        assert again.read_bytes() == once.read_bytes(), file


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip_bit(content: bytes, rng: random.Random) -> bytes:
    return _flipped(content, rng.randrange(8 * len(content)))


def _flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def _damage(file: Path, damage: Callable[[bytes, random.Random], bytes]) -> None:
    file.write_bytes(damage(file.read_bytes(), random.Random(SEED)))
