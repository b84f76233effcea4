"""Time and peak memory of one DPO step: trl's trainer against the library's log-prob core.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m benchmarks.dpo_step.run --out benchmarks/dpo_step/results/cpu.json

writes the result and, beside it, a Markdown table of it. Times are interleaved in one process; peak memory is that of
a fresh process per step (`--memory STEP CASE`): weights, reference, gradients, optimiser state and two steps.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.dpo_step.steps import Case, Step, our_step, trl_step
from benchmarks.measure import (
    in_fresh_process,
    interleaved,
    markdown,
    peak_growth_mib,
    read_arguments,
    setting,
    write_case,
)

MODULE = "benchmarks.dpo_step.run"
CASES = [Case(n, 128, 2, 2, is_bf16) for n, is_bf16 in ((49_152, False), (151_936, False), (49_152, True))]
PEERS = {"ours, live": "trl, defaults", "ours, cached": "trl, best"}  # with the same handling of the reference
STEPS = [*PEERS.values(), *PEERS]
HEADINGS = ["V", "dtype", "step", "time s", "time / defaults", "time / its peer", "peak MiB", "peak / defaults"]
HEADINGS += ["peak / its peer", "loss", "gradient norm"]


def main() -> None:
    arguments = read_arguments(__doc__, measured="STEP")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            name, index = arguments.memory
            print(json.dumps(peak_growth_mib(partial(_two_steps, name, CASES[int(index)], Path(folder)))))
            return
        packages = ["torch", "transformers", "trl", "accelerate"]
        result = {"setting": setting(packages), "rounds": arguments.rounds, "cases": []}
        for index, case in enumerate(CASES):
            steps = _measure(index, case, Path(folder), arguments.rounds)
            result["cases"].append({"case": asdict(case), "steps": steps})
            write_case(arguments.out, result, table(result), n_new=len(STEPS))


def _measure(index: int, case: Case, folder: Path, n_rounds: int) -> dict[str, dict[str, Any]]:
    peaks = {name: in_fresh_process(MODULE, ["--memory", name, str(index)]) for name in STEPS}
    timed = interleaved({name: build(name, case, folder) for name in STEPS}, n_rounds=n_rounds)
    return {name: {**timed[name], "peak_mib": peaks[name]} for name in STEPS}


def build(name: str, case: Case, folder: Path) -> Step:
    match name:
        case "trl, defaults" | "trl, best":
            return trl_step(case, folder, is_best=name == "trl, best")
        case "ours, live" | "ours, cached":
            return our_step(case, is_reference_cached=name == "ours, cached")
    raise ValueError(f"no step {name!r}; there are {STEPS}")


def _two_steps(name: str, case: Case, folder: Path) -> dict[str, float]:
    step = build(name, case, folder)
    step()
    return step()


def table(result: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for entry in result["cases"]:
        case, steps = entry["case"], entry["steps"]
        for name, step in steps.items():
            peers = [steps["trl, defaults"], steps[PEERS.get(name, name)]]
            rows.append(
                [
                    f"{case['n_vocabulary']:,}",
                    "bf16 autocast" if case["is_bf16"] else "float32",
                    name,
                    f"{step['median_seconds']:.2f}",
                    *(f"{step['median_seconds'] / peer['median_seconds']:.2f}" for peer in peers),
                    f"{step['peak_mib']:.0f}",
                    *(f"{step['peak_mib'] / peer['peak_mib']:.2f}" for peer in peers),
                    f"{step['loss']:.6f}",
                    f"{step['grad_norm']:.5f}",
                ]
            )
    return markdown(HEADINGS, rows)


if __name__ == "__main__":
    main()
