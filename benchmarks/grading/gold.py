"""Gold solutions graded against their own answers, and shuffled.

    OMP_NUM_THREADS=1 POSTTRAIN_DATA=... python -m benchmarks.grading.gold --out benchmarks/grading/results/gold.json

writes the counts, every own solution that is not CORRECT, every shuffled one that is CORRECT though its answer is
spelled in another way, and beside them a Markdown table.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.grading.pairs import Pair, own_pairs, share_of_equal_pairs, shuffled_pairs
from benchmarks.measure import markdown, setting, write_case
from posttrain.rewards.graders import GRADERS
from posttrain.rewards.math_text import comparable
from posttrain.rewards.pool import GradeRequest, GradingPool
from posttrain.schema import Grade

CASES = (
    ("gsm8k/test.jsonl", "gsm8k_strict"),
    ("gsm8k/test.jsonl", "lm_eval_strict"),
    ("gsm8k/test.jsonl", "lm_eval_flexible"),
    ("math/math_test.jsonl", "boxed"),
    ("math/math_test.jsonl", "math_verify"),
    ("math/math_test.jsonl", "reference_extraction"),
)
SEED = 0
HEADINGS = ["split", "grader", "own solutions", "correct", "correct %", "shuffled: correct %"]
HEADINGS += ["equal gold answers %", "correct, other spelling", "unparsed", "timeout"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"setting": setting(["math-verify", "sympy"]), "seed": SEED, "cases": []}
    with GradingPool(n_workers=2) as pool:
        for source, grader in CASES:
            result["cases"].append(grade_case(pool, source, grader))
            write_case(arguments.out, result, table(result), n_new=1)


def grade_case(pool: GradingPool, source: str, grader: str) -> dict[str, Any]:
    """The counts of one split and grader, with the failures and surprises by name."""
    own = own_pairs(source)
    shuffled = shuffled_pairs(own, seed=SEED)
    own_grades, shuffled_grades = grades_of(pool, own, grader), grades_of(pool, shuffled, grader)
    extract = GRADERS[grader].extract
    surprises = [
        {"task_id": pair.task_id, "gold": pair.gold, "answer": answer}
        for pair, grade in zip(shuffled, shuffled_grades, strict=True)
        if grade is Grade.CORRECT and comparable(answer := extract(pair.completion) or "") != comparable(pair.gold)
    ]
    return {
        "split": source,
        "grader": grader,
        "own": dict(Counter(own_grades)),
        "own_failures": [
            {"task_id": pair.task_id, "gold": pair.gold, "answer": extract(pair.completion), "grade": grade}
            for pair, grade in zip(own, own_grades, strict=True)
            if grade is not Grade.CORRECT
        ],
        "shuffled": dict(Counter(shuffled_grades)),
        "share_of_equal_gold_answers": share_of_equal_pairs([comparable(pair.gold) for pair in own]),
        "shuffled_correct_in_other_spelling": surprises,
    }


def grades_of(pool: GradingPool, pairs: Sequence[Pair], grader: str) -> list[Grade]:
    return pool.grade([GradeRequest(pair.gold, pair.completion, grader) for pair in pairs])


def table(result: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for case in result["cases"]:
        own, shuffled = Counter(case["own"]), Counter(case["shuffled"])
        n = own.total()
        rows.append(
            [
                case["split"],
                case["grader"],
                f"{n:,}",
                f"{own['correct']:,}",
                f"{100 * own['correct'] / n:.2f}",
                f"{100 * shuffled['correct'] / n:.2f}",
                f"{100 * case['share_of_equal_gold_answers']:.2f}",
                str(len(case["shuffled_correct_in_other_spelling"])),
                str(shuffled["unparsed"]),
                str(shuffled["timeout"]),
            ]
        )
    return markdown(HEADINGS, rows)


if __name__ == "__main__":
    main()
