"""Time and peak memory of one DPO step: trl's trainer against the library's log-prob core.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m benchmarks.dpo_step.run --out benchmarks/dpo_step/results/cpu.json

writes the result and, beside it, a Markdown table of it. Times are interleaved in one process; peak memory is that of
a fresh process per step (`--memory STEP CASE`): weights, reference, gradients, optimiser state and two steps.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.dpo_step.steps import Case, our_step, trl_step
from benchmarks.measure import Comparison, Step, beside, compare, tabulate, with_its_networks

CASES = [Case(n, 128, 2, 2, is_bf16) for n, is_bf16 in ((49_152, False), (151_936, False), (49_152, True))]
PEERS = {"ours, live": "trl, defaults", "ours, cached": "trl, best"}  # with the same handling of the reference
STEPS = [*PEERS.values(), *PEERS]
HEADINGS = ["V", "dtype", "step", "time s", "time / defaults", "time / its peer", "peak MiB", "peak / defaults"]
HEADINGS += ["peak / its peer", "loss", "gradient norm"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        build_in_folder = partial(build, folder=Path(folder))
        comparison = Comparison(
            module="benchmarks.dpo_step.run",
            cases=CASES,
            names=lambda case: STEPS,
            build=build_in_folder,
            build_alone=with_its_networks(build_in_folder),
            table=table,
            packages=["torch", "transformers", "trl", "accelerate"],
        )
        compare(comparison, __doc__)


def build(name: str, case: Case, folder: Path) -> Step:
    match name:
        case "trl, defaults" | "trl, best":
            return trl_step(case, folder, is_best=name == "trl, best")
        case "ours, live" | "ours, cached":
            return our_step(case, is_reference_cached=name == "ours, cached")
    raise ValueError(f"no step {name!r}; there are {STEPS}")


def table(result: dict[str, Any]) -> str:
    return tabulate(result, HEADINGS, cells)


def cells(case: dict[str, Any], steps: dict[str, Any], name: str) -> list[str]:
    step, peers = steps[name], [steps["trl, defaults"], steps[PEERS.get(name, name)]]
    return [
        f"{case['n_vocabulary']:,}",
        "bf16 autocast" if case["is_bf16"] else "float32",
        name,
        *beside("median_seconds", step, peers, digits=2),
        *beside("peak_mib", step, peers, digits=0),
        f"{step['loss']:.6f}",
        f"{step['grad_norm']:.5f}",
    ]


if __name__ == "__main__":
    main()
