"""Gold solutions of the test splits against their own answers; needs the data files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.grading import gold
from benchmarks.grading.pairs import own_pairs, shuffled_pairs
from posttrain.data.problems import find_data
from posttrain.rewards.graders import GRADERS
from posttrain.rewards.pool import GradingPool
from posttrain.rewards.worker_process import WorkerProcess
from posttrain.schema import Grade

RECORD = json.loads((Path(gold.__file__).parent / "results/gold.json").read_text())
AT_LEAST = {"gsm8k/test.jsonl": 0.999, "math/math_test.jsonl": 0.995}


def need(split: str) -> None:
    if not Path(find_data(split)).is_file():
        pytest.skip(f"{split} is not at hand: point POSTTRAIN_DATA at a folder that has it")


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: case["grader"])
def test_record_accounts_for_every_solution_and_for_every_shuffled_one_that_is_correct(case):
    n = sum(case["own"].values())
    assert (
        n == sum(case["shuffled"].values()) == {"gsm8k/test.jsonl": 1319, "math/math_test.jsonl": 5000}[case["split"]]
    )
    assert case["own"]["correct"] >= AT_LEAST[case["split"]] * n
    assert len(case["own_failures"]) == n - case["own"]["correct"]
    surprises = [row["grade"] == "correct" for row in case["shuffled_not_as_the_text_says"]]
    n_explained = case["n_shuffled_same_text"] + sum(surprises) - (len(surprises) - sum(surprises))
    assert case["shuffled"]["correct"] == n_explained
    # Poisson: within four standard deviations of what the frequencies of the gold answers let one expect.
    expected = n * case["expected_share_of_same_text"]
    assert abs(case["n_shuffled_same_text"] - expected) < 4 * expected**0.5


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: case["grader"])
def test_own_solutions_get_the_recorded_grades(case):
    need(case["split"])
    if GRADERS[case["grader"]].verify is not None:
        pytest.importorskip("math_verify", reason="math-verify is not installed")
    pairs = own_pairs(case["split"])
    with GradingPool(n_workers=1, time_limit_s=60.0) as pool:
        grades = gold.grades_of(pool, pairs, case["grader"])
    failures = {pair.task_id for pair, grade in zip(pairs, grades, strict=True) if grade is not Grade.CORRECT}
    assert failures == {failure["task_id"] for failure in case["own_failures"]}


@pytest.mark.slow
def test_gold_answers_of_math_are_correct_by_computer_algebra_alone():
    # The rules of equal text and plain numbers are passed by: the process is asked for every answer.
    need("math/math_test.jsonl")
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    grader = GRADERS["math_verify"]
    worker = WorkerProcess(time_limit_s=60.0, memory_limit_mb=512)
    wrong = [
        pair.task_id
        for pair in own_pairs("math/math_test.jsonl")
        if worker.verify("math_verify", pair.gold, grader.extract(pair.completion) or "") is not Grade.CORRECT
    ]
    worker.stop()
    assert len(wrong) <= 0.005 * 5000, wrong


@pytest.mark.slow
def test_fast_path_says_what_math_verify_says_of_shuffled_solutions():
    need("math/math_test.jsonl")
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    grader = GRADERS["math_verify"]
    worker = WorkerProcess(time_limit_s=60.0, memory_limit_mb=512)
    n_decided = 0
    for pair in shuffled_pairs(own_pairs("math/math_test.jsonl"), seed=5)[:1500]:
        answer = grader.extract(pair.completion) or ""
        decided = grader.decide(pair.gold, answer)
        if decided is not None:
            n_decided += 1
            assert decided is worker.verify("math_verify", pair.gold, answer), (pair.gold, answer)
    worker.stop()
    assert n_decided > 700  # two thirds of MATH's answers are plain numbers
