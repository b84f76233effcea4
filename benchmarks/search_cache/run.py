"""Time and tokens of value-guided searches that remember what they read, against one that reads everything anew.

    OMP_NUM_THREADS=1 python -m benchmarks.search_cache.run --out benchmarks/search_cache/results/cpu.json

writes the result and, beside it, a Markdown table of it. Searches are interleaved in one process and timed in CPU
seconds of their one thread; peak memory is that of a fresh process per search (`--memory STEP CASE`).
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.measure import Comparison, Step, compare, tabulate
from benchmarks.search_cache.searches import Case, make_networks, scoring, search

# 6 layers of width 192 are to 3,277 tokens what SmolLM2-135M's body is to its head.
CASES = [Case(n_vocabulary, width=192, n_layers=6, n_problems=2) for n_vocabulary in (3_277, 49_152)]
SEARCHES = ["re-encoded", "value cache", "value and policy cache", "shared trunk"]
STEPS = [*(f"search, {name}" for name in SEARCHES), *(f"scoring, {name}" for name in SEARCHES[:2])]
HEADINGS = ["V", "step", "CPU s", "re-encoded / this", "value tokens", "re-encoded / this"]
HEADINGS += ["prefilled tokens", "generated tokens", "peak MiB", "same beams"]


def main() -> None:
    comparison = Comparison(
        module="benchmarks.search_cache.run",
        cases=CASES,
        names=lambda case: STEPS,
        build=build,
        build_alone=lambda name, case: lambda: build(name, case)(),
        table=table,
        packages=["torch", "transformers"],
        clock=time.process_time,
    )
    compare(comparison, __doc__)


def build(name: str, case: Case) -> Step:
    kind, _, how = name.partition(", ")
    return {"search": search, "scoring": scoring}[kind](how, make_networks(case))


def table(result: dict[str, Any]) -> str:
    return tabulate(result, HEADINGS, cells)


def cells(case: dict[str, Any], steps: dict[str, Any], name: str) -> list[str]:
    kind, _, _ = name.partition(", ")
    step, plain = steps[name], steps[f"{kind}, re-encoded"]
    is_search = kind == "search"
    return [
        f"{case['n_vocabulary']:,}",
        name,
        f"{step['median_seconds']:.2f}",
        f"{plain['median_seconds'] / step['median_seconds']:.2f}",
        f"{step['n_value_tokens']:,}",
        f"{plain['n_value_tokens'] / step['n_value_tokens']:.1f}",
        f"{step['n_prefilled_tokens']:,}" if is_search else "-",
        f"{step['n_generated_tokens']:,}" if is_search else "-",
        f"{step['peak_mib']:.0f}",
        ("yes" if step["trees"] == plain["trees"] else "no") if is_search else "-",
    ]


if __name__ == "__main__":
    main()
