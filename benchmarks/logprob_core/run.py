"""Time and peak memory of the ways to score chosen tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.logprob_core.run --out benchmarks/logprob_core/results/cpu.json

writes the result and, beside it, a Markdown table of it. Times are interleaved in one process; peak memory is measured
by one call of the same program per method and case (`--memory METHOD CASE`), since a process keeps what it once had.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.logprob_core.methods import Case, make_inputs, methods_of, step
from benchmarks.measure import (
    in_fresh_process,
    interleaved,
    markdown,
    peak_growth_mib,
    read_arguments,
    setting,
    write_case,
)

MODULE = "benchmarks.logprob_core.run"
SIZES = ((49_152, 576), (151_936, 192))  # vocabulary and width: SmolLM2-135M's; Qwen2.5's vocabulary on a small body
N_POSITIONS = 512
CASES = [
    Case(n_vocabulary, width, N_POSITIONS, is_head_trained, has_kl)
    for (n_vocabulary, width), is_head_trained, has_kl in product(SIZES, (True, False), (False, True))
]
HEADINGS = ["V", "D", "head", "scores", "method", "time s", "time / dense", "peak MiB", "peak / dense"]
HEADINGS += ["loss", "gradient norm"]


def main() -> None:
    arguments = read_arguments(__doc__, measured="METHOD")
    torch.set_num_threads(1)
    if arguments.memory:
        method, case = arguments.memory[0], CASES[int(arguments.memory[1])]
        print(json.dumps(peak_growth_mib(partial(step, method, make_inputs(case), has_kl=case.has_kl))))
        return
    result = {"setting": setting(["torch", "trl"]), "rounds": arguments.rounds, "cases": []}
    for index, case in enumerate(CASES):
        result["cases"].append({"case": asdict(case), "methods": _measure(index, case, arguments.rounds)})
        write_case(arguments.out, result, table(result), n_new=len(methods_of(case)))


def _measure(index: int, case: Case, n_rounds: int) -> dict[str, dict[str, Any]]:
    methods = methods_of(case)
    peaks = {name: in_fresh_process(MODULE, ["--memory", name, str(index)]) for name in methods}
    inputs = make_inputs(case)
    steps = {name: partial(step, name, inputs, has_kl=case.has_kl) for name in methods}
    timed = interleaved(steps, n_rounds=n_rounds)
    return {name: {**timed[name], "peak_mib": peaks[name]} for name in methods}


def table(result: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for entry in result["cases"]:
        case, methods = entry["case"], entry["methods"]
        of_dense = methods["dense"]
        for name, method in methods.items():
            rows.append(
                [
                    f"{case['n_vocabulary']:,}",
                    str(case["width"]),
                    "trained" if case["is_head_trained"] else "frozen",
                    "logp, KL" if case["has_kl"] else "logp",
                    name,
                    f"{method['median_seconds']:.2f}",
                    f"{method['median_seconds'] / of_dense['median_seconds']:.2f}",
                    f"{method['peak_mib']:.0f}",
                    f"{method['peak_mib'] / of_dense['peak_mib']:.2f}",
                    f"{method['loss']:.6f}",
                    f"{method['grad_norm']:.6f}",
                ]
            )
    return markdown(HEADINGS, rows)


if __name__ == "__main__":
    main()
