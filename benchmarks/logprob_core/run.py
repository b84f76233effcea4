"""Time and peak memory of the ways to score chosen tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.logprob_core.run --out benchmarks/logprob_core/results/cpu.json

writes the result and, beside it, a Markdown table of it. Times are interleaved in one process; peak memory is measured
by one call of the same program per method and case (`--memory METHOD CASE`), since a process keeps what it once had.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

from benchmarks.logprob_core.methods import Case, make_inputs, methods_of, step
from benchmarks.measure import Comparison, Step, beside, compare, tabulate

SIZES = ((49_152, 576), (151_936, 192))  # vocabulary and width: SmolLM2-135M's; Qwen2.5's vocabulary on a small body
N_POSITIONS = 512
CASES = [
    Case(n_vocabulary, width, N_POSITIONS, is_head_trained, has_kl)
    for (n_vocabulary, width), is_head_trained, has_kl in product(SIZES, (True, False), (False, True))
]
HEADINGS = ["V", "D", "head", "scores", "method", "time s", "time / dense", "peak MiB", "peak / dense"]
HEADINGS += ["loss", "gradient norm"]


def main() -> None:
    comparison = Comparison(
        module="benchmarks.logprob_core.run",
        cases=CASES,
        names=methods_of,
        build=build,
        build_alone=build,
        table=table,
        packages=["torch", "trl"],
    )
    compare(comparison, __doc__)


def build(method: str, case: Case) -> Step:
    return partial(step, method, make_inputs(case), has_kl=case.has_kl)


def table(result: dict[str, Any]) -> str:
    return tabulate(result, HEADINGS, cells)


def cells(case: dict[str, Any], methods: dict[str, Any], name: str) -> list[str]:
    method, peers = methods[name], [methods["dense"]]
    return [
        f"{case['n_vocabulary']:,}",
        str(case["width"]),
        "trained" if case["is_head_trained"] else "frozen",
        "logp, KL" if case["has_kl"] else "logp",
        name,
        *beside("median_seconds", method, peers, digits=2),
        *beside("peak_mib", method, peers, digits=0),
        f"{method['loss']:.6f}",
        f"{method['grad_norm']:.6f}",
    ]


if __name__ == "__main__":
    main()
