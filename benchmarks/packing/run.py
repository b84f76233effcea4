"""Time, tokens per second and peak memory of one OREO step on packed rows against padded ones.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m benchmarks.packing.run --out benchmarks/packing/results/cpu.json

writes the result and, beside it, a Markdown table of it. Steps are interleaved in one process and timed in CPU seconds
of their one thread; peak memory is that of a fresh process per step (`--memory STEP CASE`): weights, reference,
gradients, optimiser state and two steps.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.measure import (
    in_fresh_process,
    interleaved,
    markdown,
    peak_growth_mib,
    read_arguments,
    setting,
    write_case,
)
from benchmarks.packing.lengths import typical_batch
from benchmarks.packing.steps import Case, oreo_step

MODULE = "benchmarks.packing.run"
# 6 layers of width 192 are to 3,277 tokens what SmolLM2-135M's body is to its head.
CASES = [Case(n_vocabulary=3_277, width=192, n_layers=6, n_rows=16)]
STEPS = {"padded": False, "packed": True}  # is_packed
HEADINGS = ["V", "rows", "positions / tokens", "step", "CPU s", "tokens/s", "tokens/s / padded"]
HEADINGS += ["peak MiB", "peak / padded", "loss", "gradient norm"]


def main() -> None:
    arguments = read_arguments(__doc__, measured="STEP")
    torch.set_num_threads(1)
    if arguments.memory:
        name, index = arguments.memory
        print(json.dumps(peak_growth_mib(partial(_two_steps, name, CASES[int(index)]))))
        return
    result = {"setting": setting(["torch", "transformers"]), "rounds": arguments.rounds, "cases": []}
    for index, case in enumerate(CASES):
        steps = _measure(index, case, arguments.rounds)
        lengths = [sum(row) for row in typical_batch(case.n_rows)]
        result["cases"].append({"case": asdict(case), "lengths": lengths, "steps": steps})
        write_case(arguments.out, result, table(result), n_new=len(STEPS))


def _measure(index: int, case: Case, n_rounds: int) -> dict[str, dict[str, Any]]:
    peaks = {name: in_fresh_process(MODULE, ["--memory", name, str(index)]) for name in STEPS}
    steps = {name: oreo_step(case, is_packed=is_packed) for name, is_packed in STEPS.items()}
    timed = interleaved(steps, n_rounds=n_rounds, clock=time.process_time)
    return {name: {**timed[name], "peak_mib": peaks[name]} for name in STEPS}


def _two_steps(name: str, case: Case) -> dict[str, float]:
    step = oreo_step(case, is_packed=STEPS[name])
    step()
    return step()


def table(result: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for entry in result["cases"]:
        case, lengths, padded = entry["case"], entry["lengths"], entry["steps"]["padded"]
        for name, step in entry["steps"].items():
            rows.append(
                [
                    f"{case['n_vocabulary']:,}",
                    str(case["n_rows"]),
                    f"{len(lengths) * max(lengths) / sum(lengths):.2f}",
                    name,
                    f"{step['median_seconds']:.2f}",
                    f"{sum(lengths) / step['median_seconds']:.0f}",
                    f"{padded['median_seconds'] / step['median_seconds']:.2f}",
                    f"{step['peak_mib']:.0f}",
                    f"{step['peak_mib'] / padded['peak_mib']:.2f}",
                    f"{step['loss']:.6f}",
                    f"{step['grad_norm']:.5f}",
                ]
            )
    return markdown(HEADINGS, rows)


if __name__ == "__main__":
    main()
