"""Time and peak memory of one OREO step: the reference code's way of working against the library's.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m benchmarks.oreo_step.run --out benchmarks/oreo_step/results/cpu.json

writes the result and, beside it, a Markdown table of it. Steps are interleaved in one process and timed in CPU seconds
of their one thread; peak memory is that of a fresh process per step (`--memory STEP CASE`): weights, reference,
gradients, optimiser state and two steps.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.measure import Comparison, Step, beside, compare, tabulate, with_its_networks
from benchmarks.oreo_step.reference_algorithm import reference_step
from benchmarks.packing.steps import Case, oreo_step

CASES = [Case(n_vocabulary, width=192, n_layers=6, n_rows=4) for n_vocabulary in (49_152, 151_936)]
STEPS = ["reference algorithm", "ours, padded", "ours, packed"]
HEADINGS = ["V", "step", "CPU s", "time / reference", "peak MiB", "peak / reference"]
HEADINGS += ["loss", "policy gradient norm", "value gradient norm"]


def main() -> None:
    comparison = Comparison(
        module="benchmarks.oreo_step.run",
        cases=CASES,
        names=lambda case: STEPS,
        build=build,
        build_alone=with_its_networks(build),
        table=table,
        packages=["torch", "transformers"],
        clock=time.process_time,
    )
    compare(comparison, __doc__)


def build(name: str, case: Case) -> Step:
    match name:
        case "reference algorithm":
            return reference_step(case)
        case "ours, padded" | "ours, packed":
            return oreo_step(case, is_packed=name == "ours, packed")
    raise ValueError(f"no step {name!r}; there are {STEPS}")


def table(result: dict[str, Any]) -> str:
    return tabulate(result, HEADINGS, cells)


def cells(case: dict[str, Any], steps: dict[str, Any], name: str) -> list[str]:
    step, reference = steps[name], steps["reference algorithm"]
    return [
        f"{case['n_vocabulary']:,}",
        name,
        *beside("median_seconds", step, [reference], digits=2),
        *beside("peak_mib", step, [reference], digits=0),
        f"{step['loss']:.6f}",
        f"{step['policy_grad_norm']:.5f}",
        f"{step['value_grad_norm']:.4f}",
    ]


if __name__ == "__main__":
    main()
