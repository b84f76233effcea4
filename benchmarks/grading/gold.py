"""Gold solutions graded against their own answers, and shuffled.

    OMP_NUM_THREADS=1 POSTTRAIN_DATA=... python -m benchmarks.grading.gold --out benchmarks/grading/results/gold.json

writes the counts, every own solution that is not CORRECT, every shuffled one that is CORRECT though its answer is
another text or not CORRECT though it is the same, and beside them a Markdown table.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.grading.pairs import Pair, own_pairs, share_of_equal_pairs, shuffled_pairs
from benchmarks.grading.recorded import markdown
from benchmarks.measure import setting, write_result
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
HEADINGS = ["split", "grader", "solutions", "own: correct", "own: %", "shuffled: correct", "of them the same text"]
HEADINGS += ["same text expected", "shuffled: unparsed", "shuffled: timeout"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"setting": setting(["math-verify", "sympy"]), "seed": SEED, "cases": []}
    with GradingPool(n_workers=2) as pool:
        for source, grader in CASES:
            result["cases"].append(grade_case(pool, source, grader))
            write_result(arguments.out, result, table(result), n_new=1)


def grade_case(pool: GradingPool, source: str, grader: str) -> dict[str, Any]:
    """The counts of one split and grader, with the failures and surprises by name."""
    own = own_pairs(source)
    shuffled = shuffled_pairs(own, seed=SEED)
    own_grades, shuffled_grades = grades_of(pool, own, grader), grades_of(pool, shuffled, grader)
    extract = GRADERS[grader].extract
    is_same_text = [comparable(extract(pair.completion) or "") == comparable(pair.gold) for pair in shuffled]
    return {
        "split": source,
        "grader": grader,
        "own": dict(Counter(own_grades)),
        "own_failures": [
            _named(pair, extract(pair.completion), grade)
            for pair, grade in zip(own, own_grades, strict=True)
            if grade is not Grade.CORRECT
        ],
        "shuffled": dict(Counter(shuffled_grades)),
        "n_shuffled_same_text": sum(is_same_text),
        "expected_share_of_same_text": share_of_equal_pairs([comparable(pair.gold) for pair in own]),
        "shuffled_not_as_the_text_says": [
            _named(pair, extract(pair.completion), grade)
            for pair, grade, is_same in zip(shuffled, shuffled_grades, is_same_text, strict=True)
            if (grade is Grade.CORRECT) != is_same
        ],
    }


def _named(pair: Pair, answer: str | None, grade: Grade) -> dict[str, str | None]:
    return {"task_id": pair.task_id, "gold": pair.gold, "answer": answer, "grade": grade}


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
                str(shuffled["correct"]),
                str(case["n_shuffled_same_text"]),
                f"{n * case['expected_share_of_same_text']:.1f}",
                str(shuffled["unparsed"]),
                str(shuffled["timeout"]),
            ]
        )
    return markdown(HEADINGS, rows)


if __name__ == "__main__":
    main()
