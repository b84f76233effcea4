"""Time and memory of steps that are compared: interleaved in one process, and each alone in a fresh one."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
Step = Callable[[], dict[str, float]]  # one step; what it returns is shown beside its time


def interleaved(
    steps: Mapping[str, Step], *, n_rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, Any]]:
    """Run every step once to warm up, then `n_rounds` times in turn; seconds of each round and their median.

    On a machine that other work fills, `time.process_time` as the clock leaves out the waiting.
    """
    shown = {name: step() for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(n_rounds):
        for name, step in steps.items():
            start = clock()
            step()
            seconds[name].append(clock() - start)
    return {
        name: {"seconds": all_seconds, "median_seconds": statistics.median(all_seconds), **shown[name]}
        for name, all_seconds in seconds.items()
    }


def peak_growth_mib(step: Step) -> float:
    """MiB by which the resident set grew at most while `step` ran, over what it was before (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    before = _resident_mib("VmRSS")
    step()
    return _resident_mib("VmHWM") - before


def in_fresh_process(module: str, arguments: Sequence[str]) -> Any:
    """What `python -m module arguments` printed as JSON on its last line."""
    command = [sys.executable, "-m", module, *arguments]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with an error:\n{finished.stderr[-2000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def read_arguments(description: str | None, *, measured: str) -> argparse.Namespace:
    """--out and --rounds of a comparison, and --memory for the one of its `measured` that a fresh process runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs=2, metavar=(measured, "CASE"))
    return parser.parse_args()


def write_case(out: Path, result: Mapping[str, Any], table: str, *, n_new: int) -> None:
    """Write the result so far and, beside it, its table; print the `n_new` last rows."""
    out.write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(table + "\n")
    print("\n".join(table.splitlines()[-n_new:]), flush=True)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows))


def setting(packages: Sequence[str]) -> dict[str, Any]:
    """Device, threads, versions and commit, for the head of a result file."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {
        "device": f"CPU: {cpu.split(':')[1].strip()}",
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "commit": commit.stdout.strip(),
    }


def _resident_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
