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
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
Step = Callable[[], dict[str, float]]  # one step; what it returns is shown beside its time
Build = Callable[[str, Any], Step]  # the step of a name, on a case
Cells = Callable[[dict[str, Any], dict[str, Any], str], list[str]]  # case, its steps, the name of one -> a table's row


@dataclass(frozen=True, slots=True)
class Comparison:
    """Steps that do the same work in different ways, on several cases."""

    module: str  # its `python -m module --memory STEP CASE` measures one step in a fresh process
    cases: Sequence[Any]  # dataclasses
    names: Callable[[Any], Sequence[str]]  # the steps of a case, as the table orders them
    build: Build  # for the times
    build_alone: Build  # for the peak: what is allocated while building is not counted, while stepping is
    table: Callable[[dict[str, Any]], str]
    packages: Sequence[str]  # whose versions are recorded
    clock: Callable[[], float] = time.perf_counter


def compare(comparison: Comparison, description: str | None) -> None:
    """The command line of a comparison: times of its steps in turn, peak of each alone, result and table to --out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often every step is timed")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--out", type=Path, help="the result, .json; its table goes beside it as .md")
    either.add_argument("--memory", nargs=2, metavar=("STEP", "CASE"), help="print the peak of one step alone in MiB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        name, index = arguments.memory
        print(json.dumps(peak_growth_mib(comparison.build_alone(name, comparison.cases[int(index)]))))
        return
    result = {"setting": setting(comparison.packages), "rounds": arguments.rounds, "cases": []}
    for index, case in enumerate(comparison.cases):
        steps = _measure(comparison, index, case, arguments.rounds)
        result["cases"].append({"case": asdict(case), "steps": steps})
        table = comparison.table(result)
        write_result(arguments.out, result, table, n_new=len(steps))


def _measure(comparison: Comparison, index: int, case: Any, n_rounds: int) -> dict[str, dict[str, Any]]:
    names = comparison.names(case)
    peaks = {name: in_fresh_process(comparison.module, ["--memory", name, str(index)]) for name in names}
    steps = {name: comparison.build(name, case) for name in names}
    timed = interleaved(steps, n_rounds=n_rounds, clock=comparison.clock)
    return {name: {**timed[name], "peak_mib": peaks[name]} for name in names}


def with_its_networks(build: Build) -> Build:
    """Building and two steps as one step: its peak holds weights, gradients and the optimiser's state."""

    def build_alone(name: str, case: Any) -> Step:
        def build_and_step() -> dict[str, float]:
            step = build(name, case)
            step()
            return step()

        return build_and_step

    return build_alone


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


def tabulate(
    result: Mapping[str, Any],
    headings: Sequence[str],
    cells: Callable[[dict[str, Any], dict[str, Any], str], list[str]],
) -> str:
    """A Markdown table of a result, a row for each step of each case."""
    rows = [cells(entry["case"], entry["steps"], name) for entry in result["cases"] for name in entry["steps"]]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows))


def beside(field: str, step: Mapping[str, Any], peers: Sequence[Mapping[str, Any]], *, digits: int) -> list[str]:
    """A measured field of a step, and its ratio to that of each peer."""
    return [f"{step[field]:.{digits}f}", *(f"{step[field] / peer[field]:.2f}" for peer in peers)]


def write_result(out: Path, result: Mapping[str, Any], table: str, *, n_new: int) -> None:
    """Write the result so far and, beside it, its table; print the `n_new` last rows."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(table + "\n")
    print("\n".join(table.splitlines()[-n_new:]), flush=True)


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
