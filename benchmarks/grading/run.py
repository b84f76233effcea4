"""Grading of ordinary MATH answers: our pool against bare math-verify, on the same answers in one run.

    OMP_NUM_THREADS=1 POSTTRAIN_DATA=... python -m benchmarks.grading.run --out benchmarks/grading/results/cpu.json

writes the result and, beside it, a Markdown table of it. Each answer is graded alone, one after another, once by the
pool with one warm process and once by math-verify in this process, in turn.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.grading.pairs import Pair, own_pairs, shuffled_pairs
from benchmarks.measure import markdown, setting, write_case
from posttrain.rewards.pool import GradeRequest, GradingPool
from posttrain.schema import Grade

SEED = 1
CASES = (("right", 1.0), ("half right", 0.5), ("wrong", 0.0))  # name, share of answers to the problem itself
GRADERS_TIMED = ("math_verify", "reference_extraction")
HEADINGS = ["answers", "n", "grader", "p50 ms", "p99 ms", "max ms", "answers/s", "answers/s / bare", "other verdicts"]

Grade1 = Callable[[Pair], bool]  # whether the answer is graded right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=1000, help="answers of each case")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    result: dict[str, Any] = {"setting": setting(["math-verify", "sympy"]), "seed": SEED, "cases": []}
    with GradingPool(n_workers=1) as pool:
        pool.grade([GradeRequest("x+1", r"\boxed{1+x}", "math_verify")])  # starts the process
        methods: dict[str, Grade1] = {"bare math-verify": _bare}
        methods |= {name: _pooled(pool, name) for name in GRADERS_TIMED}
        _bare(Pair("", "x+1", r"\boxed{1+x}"))
        for name, share in CASES:
            pairs = answers(arguments.n, share_right=share)
            result["cases"].append({"answers": name, "n": len(pairs), "methods": measure(methods, pairs)})
            write_case(arguments.out, result, table(result), n_new=len(methods))


def answers(n: int, *, share_right: float) -> list[Pair]:
    """n problems of MATH's test split at random: the first with their own solution, the rest with another's."""
    own = own_pairs("math/math_test.jsonl")
    other = shuffled_pairs(own, seed=SEED)
    order = shuffled_pairs([Pair(str(index), "", str(index)) for index in range(len(own))], seed=SEED + 1)
    chosen = [int(pair.completion) for pair in order[:n]]
    n_right = round(share_right * n)
    return [own[index] for index in chosen[:n_right]] + [other[index] for index in chosen[n_right:]]


def measure(methods: dict[str, Grade1], pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Milliseconds of each answer by each method, and the answers on which a method and bare math-verify differ."""
    milliseconds: dict[str, list[float]] = {name: [] for name in methods}
    verdicts: dict[str, list[bool]] = {name: [] for name in methods}
    for pair in pairs:
        for name, grade in methods.items():
            start = time.perf_counter()
            verdicts[name].append(grade(pair))
            milliseconds[name].append(1000 * (time.perf_counter() - start))
    bare = verdicts["bare math-verify"]
    return {
        name: {
            "milliseconds": [round(value, 3) for value in milliseconds[name]],
            "other_verdicts": [
                {
                    "task_id": pair.task_id,
                    "gold": pair.gold,
                    "end_of_completion": pair.completion[-120:],
                    "bare": theirs,
                }
                for pair, ours, theirs in zip(pairs, verdicts[name], bare, strict=True)
                if ours != theirs
            ],
        }
        for name in methods
    }


def _pooled(pool: GradingPool, grader: str) -> Grade1:
    return lambda pair: pool.grade([GradeRequest(pair.gold, pair.completion, grader)]) == [Grade.CORRECT]


def _bare(pair: Pair) -> bool:
    """math-verify as its README says, with its own time limits."""
    from math_verify import parse, verify

    return verify(parse(f"${pair.gold}$"), parse(pair.completion))


def table(result: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for case in result["cases"]:
        bare_s = sum(case["methods"]["bare math-verify"]["milliseconds"]) / 1000
        for name, method in case["methods"].items():
            times = sorted(method["milliseconds"])
            seconds = sum(times) / 1000
            rows.append(
                [
                    case["answers"],
                    f"{case['n']:,}",
                    name,
                    *(f"{value:.1f}" for value in (times[len(times) // 2], times[len(times) * 99 // 100], times[-1])),
                    f"{case['n'] / seconds:.0f}",
                    f"{bare_s / seconds:.1f}",
                    str(len(method["other_verdicts"])),
                ]
            )
    return markdown(HEADINGS, rows)


if __name__ == "__main__":
    main()
