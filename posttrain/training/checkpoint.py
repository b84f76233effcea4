"""Crash-safe checkpoints: a folder is either complete and checked by sha256, or it is passed over.

A checkpoint is written in this order, so that a SIGKILL or a power cut at any moment cannot pass for a whole one:

1. every file goes to a staging folder beside the final one and is flushed to disk (fsync of files and folders);
2. `manifest.json` lists the size and sha256 of each file;
3. the staging folder is renamed to its final name;
4. the marker `COMPLETE`, which holds the sha256 of the manifest, is written last.

A folder without the marker is partial. The marker comes after the rename because not every network file system renames
a folder atomically.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from posttrain.provenance import file_sha256, write_json

MANIFEST = "manifest.json"
MARKER = "COMPLETE"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


class DamagedCheckpointError(RuntimeError):
    """A checkpoint is partial, or a file in it is not the one that was written."""


def write_checkpoint(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a staging folder, then make it appear as `folder`, complete or not at all.

    An older folder of that name is replaced. If `write` raises, nothing appears under `folder`.
    """
    staging = begin_checkpoint(folder)
    write(staging)
    commit_checkpoint(folder)


def begin_checkpoint(folder: Path) -> Path:
    """Make an empty staging folder for `folder`; what an interrupted save left there is removed."""
    staging = staging_folder(folder)
    shutil.rmtree(staging.parent, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def staging_folder(folder: Path) -> Path:
    """Where `folder` is written before it is complete; hidden, so nothing takes it for a checkpoint."""
    return folder.parent / f".{folder.name}.partial" / folder.name


def commit_checkpoint(folder: Path) -> None:
    """Turn the filled staging folder of `folder` into `folder`: manifest, fsync, rename, marker."""
    staging = staging_folder(folder)
    manifest = {
        path.relative_to(staging).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(staging.rglob("*"))
        if path.is_file()
    }
    write_json(staging / MANIFEST, manifest)
    _flush_tree(staging)
    if folder.exists():
        remove_checkpoint(folder)
    staging.rename(folder)
    flush(folder.parent)
    marker = folder / MARKER
    marker.write_bytes(_marker_content(folder))
    flush(marker)
    flush(folder)
    staging.parent.rmdir()


def verify_checkpoint(folder: Path) -> None:
    """Read every file of `folder` again and compare it with the manifest.

    Raises DamagedCheckpointError naming the first file that is missing, cut short or changed.
    """
    marker = folder / MARKER
    if not marker.is_file():
        raise DamagedCheckpointError(f"{folder} has no {MARKER} marker: the save was interrupted")
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file() or marker.read_bytes() != _marker_content(folder):
        raise DamagedCheckpointError(f"{manifest_path} is missing or not the file that {MARKER} was written for")
    for name, expected in json.loads(manifest_path.read_text()).items():
        _verify_file(folder / name, expected)


def checkpoint_step(folder: Path) -> int | None:
    """The step in a name `checkpoint-N`; None for other names."""
    match = CHECKPOINT_NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """All folders `checkpoint-N` of a run, lowest step first, complete or not."""
    if not run_dir.is_dir():
        return []
    steps = {path: checkpoint_step(path) for path in run_dir.iterdir() if path.is_dir()}
    return sorted((path for path, step in steps.items() if step is not None), key=lambda path: steps[path] or 0)


def latest_complete_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the highest step that passes `verify_checkpoint`; None when there is none.

    Each one that is passed over is named in a warning with the reason.
    """
    for folder in reversed(list_checkpoints(run_dir)):
        try:
            verify_checkpoint(folder)
        except DamagedCheckpointError as damage:
            logger.warning("Passing over %s: %s", folder.name, damage)
        else:
            return folder
    return None


def rotate_checkpoints(run_dir: Path, *, newest: Path, keep: int, protected: Iterable[Path] = ()) -> None:
    """Delete checkpoints until `keep` are left; `newest` and the `protected` ones always stay.

    Checkpoints past the step of `newest` come from before a resume and go first; then the lowest steps go.
    """
    newest_step = checkpoint_step(newest) or 0
    always_kept = {newest.resolve(), *(path.resolve() for path in protected)}
    candidates = [path for path in list_checkpoints(run_dir) if path.resolve() not in always_kept]
    candidates.sort(key=lambda path: (checkpoint_step(path) or 0) <= newest_step)  # stable: steps stay in order
    n_surplus = len(candidates) + len(always_kept) - max(keep, len(always_kept))
    for folder in candidates[:n_surplus]:
        remove_checkpoint(folder)


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, its marker first: a deletion that is cut short leaves a folder that counts as partial."""
    (folder / MARKER).unlink(missing_ok=True)
    flush(folder)
    shutil.rmtree(folder)


def _marker_content(folder: Path) -> bytes:
    return file_sha256(folder / MANIFEST).encode() + b"\n"


def _verify_file(path: Path, expected: dict[str, Any]) -> None:
    if not path.is_file():
        raise DamagedCheckpointError(f"{path} is missing")
    n_bytes = path.stat().st_size
    if n_bytes != expected["bytes"]:
        raise DamagedCheckpointError(f"{path} has {n_bytes} bytes, {expected['bytes']} were written")
    if file_sha256(path) != expected["sha256"]:
        raise DamagedCheckpointError(f"{path} has changed since it was written: its sha256 differs")


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def flush(path: Path) -> None:
    """fsync of a file, or of a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
