"""Time, tokens per second and peak memory of one OREO step on packed rows against padded ones.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m benchmarks.packing.run --out benchmarks/packing/results/cpu.json

writes the result and, beside it, a Markdown table of it. Steps are interleaved in one process and timed in CPU seconds
of their one thread; peak memory is that of a fresh process per step (`--memory STEP CASE`): weights, reference,
gradients, optimiser state and two steps.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.measure import Comparison, Step, beside, compare, tabulate, with_its_networks
from benchmarks.packing.lengths import padding_factor, typical_batch
from benchmarks.packing.steps import Case, oreo_step

# 6 layers of width 192 are to 3,277 tokens what SmolLM2-135M's body is to its head.
CASES = [Case(n_vocabulary, width=192, n_layers=6, n_rows=16) for n_vocabulary in (3_277, 49_152, 151_936)]
STEPS = {"padded": False, "packed": True}  # is_packed
HEADINGS = ["V", "rows", "positions / tokens", "step", "CPU s", "tokens/s", "tokens/s / padded"]
HEADINGS += ["peak MiB", "peak / padded", "loss", "loss difference", "policy gradient norm", "value gradient norm"]


def main() -> None:
    comparison = Comparison(
        module="benchmarks.packing.run",
        cases=CASES,
        names=lambda case: list(STEPS),
        build=build,
        build_alone=with_its_networks(build),
        table=table,
        packages=["torch", "transformers"],
        clock=time.process_time,
    )
    compare(comparison, __doc__)


def build(name: str, case: Case) -> Step:
    return oreo_step(case, is_packed=STEPS[name])


def table(result: dict[str, Any]) -> str:
    return tabulate(result, HEADINGS, cells)


def cells(case: dict[str, Any], steps: dict[str, Any], name: str) -> list[str]:
    step, padded = steps[name], steps["padded"]
    batch = typical_batch(case["n_rows"])
    n_tokens = sum(map(sum, batch))
    return [
        f"{case['n_vocabulary']:,}",
        str(case["n_rows"]),
        f"{padding_factor(batch):.2f}",
        name,
        f"{step['median_seconds']:.2f}",
        f"{n_tokens / step['median_seconds']:.0f}",
        f"{padded['median_seconds'] / step['median_seconds']:.2f}",
        *beside("peak_mib", step, [padded], digits=0),
        f"{step['loss']:.6f}",
        f"{abs(step['loss'] - padded['loss']):.0e}",
        f"{step['policy_grad_norm']:.5f}",
        f"{step['value_grad_norm']:.5f}",
    ]


if __name__ == "__main__":
    main()
