"""Grading of ordinary MATH answers: our graders against bare math-verify, on the same answers.

    OMP_NUM_THREADS=1 POSTTRAIN_DATA=... python -m benchmarks.grading.run --out benchmarks/grading/results/cpu.json

writes the result and, beside it, a Markdown table of it. Each method grades the answers one after another in a fresh
process of its own (`--method NAME CASE`), in CPU time, since the machine may be shared. Ours run what a process of the
pool runs, from the same start; what asking the pool adds is timed apart (`round_trip_ms`).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.grading.pairs import Pair, own_pairs, shuffled_pairs
from benchmarks.grading.recorded import markdown
from benchmarks.measure import in_fresh_process, setting, write_result
from posttrain.rewards.graders import GRADERS
from posttrain.rewards.symbolic import warm_up
from posttrain.rewards.worker_process import WorkerProcess
from posttrain.schema import Grade

MODULE = "benchmarks.grading.run"
SEED = 1
N_ANSWERS = 1000
BARE = "bare math-verify"
METHODS = (BARE, "math_verify", "reference_extraction")
CASES = {"right": 1.0, "half right": 0.5, "wrong": 0.0}  # share of answers to the problem itself
HEADINGS = ["answers", "n", "method", "p50 ms", "p99 ms", "max ms", "answers/s", "answers/s / bare", "other verdicts"]

IsRight = Callable[[Pair], bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method", nargs=2, metavar=("METHOD", "CASE"))
    arguments = parser.parse_args()
    if arguments.method:
        method, case = arguments.method
        print(json.dumps(time_method(method, answers(share_right=CASES[case]))))
        return
    result: dict[str, Any] = {"setting": setting(["math-verify", "sympy"]), "seed": SEED, "cases": []}
    result["round_trip_ms"] = round_trip_ms()
    for case, share in CASES.items():
        timed = {name: in_fresh_process(MODULE, ["--method", name, case]) for name in METHODS}
        entry = {"answers": case, "methods": compare(timed, answers(share_right=share))}
        result["cases"].append(entry)
        write_result(arguments.out, result, table(result), n_new=len(METHODS))


def answers(*, share_right: float) -> list[Pair]:
    """Problems of MATH's test split at random, the first of them with their own solution, the rest with another's."""
    own = own_pairs("math/math_test.jsonl")
    other = shuffled_pairs(own, seed=SEED)
    order = shuffled_pairs([Pair("", "", str(index)) for index in range(len(own))], seed=SEED + 1)
    chosen = [int(pair.completion) for pair in order[:N_ANSWERS]]
    n_right = round(share_right * N_ANSWERS)
    return [own[index] for index in chosen[:n_right]] + [other[index] for index in chosen[n_right:]]


def time_method(name: str, pairs: list[Pair]) -> dict[str, list[Any]]:
    """CPU milliseconds and verdict of each answer."""
    logging.disable(logging.WARNING)
    is_right = bare_math_verify if name == BARE else ours(name)
    is_right(Pair("", "x+1", r"\boxed{1+x}"))
    milliseconds: list[float] = []
    verdicts: list[bool] = []
    for pair in pairs:
        start = time.process_time()
        verdicts.append(is_right(pair))
        milliseconds.append(round(1000 * (time.process_time() - start), 3))
    return {"milliseconds": milliseconds, "verdicts": verdicts}


def ours(grader: str) -> IsRight:
    warm_up()
    return lambda pair: GRADERS[grader](pair.gold, pair.completion) is Grade.CORRECT


def bare_math_verify(pair: Pair) -> bool:
    """math-verify as its README says, with its own time limits."""
    from math_verify import parse, verify

    return verify(parse(f"${pair.gold}$"), parse(pair.completion))


def round_trip_ms() -> float:
    """Median wall milliseconds by which asking a warm process costs more than the work: that of an answer like 1."""
    worker = WorkerProcess(time_limit_s=60.0, memory_limit_mb=512)
    milliseconds: list[float] = []
    for _ in range(200):
        start = time.perf_counter()
        worker.verify("math_verify", "1", "1")
        milliseconds.append(1000 * (time.perf_counter() - start))
    worker.stop()
    return statistics.median(milliseconds)


def compare(timed: dict[str, dict[str, list[Any]]], pairs: list[Pair]) -> dict[str, dict[str, Any]]:
    """The times, and the answers on which a method and bare math-verify differ."""
    return {
        name: {
            "milliseconds": summary(timed[name]["milliseconds"]),
            "other_verdicts": [
                {"task_id": p.task_id, "gold": p.gold, "end_of_completion": p.completion[-120:], "bare": theirs}
                for p, own, theirs in zip(pairs, timed[name]["verdicts"], timed[BARE]["verdicts"], strict=True)
                if own != theirs
            ],
        }
        for name in timed
    }


def summary(milliseconds: list[float]) -> dict[str, float]:
    """Number, sum and quantiles."""
    ordered = sorted(milliseconds)
    n = len(ordered)
    quantiles = {f"p{q}": ordered[n * q // 100] for q in (50, 90, 95, 99)}
    return {"n": n, "sum": round(sum(ordered), 1), **quantiles, "max": ordered[-1]}


def table(result: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for case in result["cases"]:
        bare = case["methods"][BARE]["milliseconds"]
        for name, method in case["methods"].items():
            spent = method["milliseconds"]
            rows.append(
                [
                    case["answers"],
                    f"{spent['n']:,}",
                    name,
                    *(f"{spent[quantile]:.2f}" for quantile in ("p50", "p99", "max")),
                    f"{1000 * spent['n'] / spent['sum']:.0f}",
                    f"{bare['sum'] / spent['sum']:.1f}",
                    str(len(method["other_verdicts"])),
                ]
            )
    return markdown(HEADINGS, rows)


if __name__ == "__main__":
    main()
