"""The pool of grading processes: right grades, hard limits, and what happens when things die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from posttrain.rewards.grade import grade_all
from posttrain.rewards.graders import GRADERS
from posttrain.rewards.pool import GradeRequest, GradingPool
from posttrain.rewards.worker_process import GradingError, WorkerProcess
from posttrain.schema import Grade, Problem
from tests.rewards.hostile_answers import hostile_answers

pytest.importorskip("math_verify", reason="math-verify is not installed")

CORRECT, WRONG, UNPARSED, TIMEOUT = Grade.CORRECT, Grade.WRONG, Grade.UNPARSED, Grade.TIMEOUT
REPOSITORY = Path(__file__).resolve().parents[2]
SLOW = r"\binom{10^9}{10^8}"  # sympy multiplies it out, which takes minutes


def ask(gold: str, answer: str, grader: str = "math_verify") -> GradeRequest:
    return GradeRequest(gold, rf"\boxed{{{answer}}}", grader)


def resident_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.fixture(scope="module")
def pool():
    with GradingPool(n_workers=2, time_limit_s=20.0) as pool:
        yield pool


def test_grades_come_in_the_order_of_the_requests_whoever_decides_them(pool):
    requests = [
        ask("x^2+2x+1", "(x+1)^2"),
        ask("2", "2"),
        ask("2", "3", "boxed"),
        ask(r"\sqrt{8}", r"2\sqrt{2}", "reference_extraction"),
        ask("x", r"\frac"),
        GradeRequest("2", "#### 2", "lm_eval_strict"),
        GradeRequest("2", "nothing", "gsm8k_strict"),
        ask("x+1", "x+2"),
    ]
    expected = [CORRECT, CORRECT, WRONG, CORRECT, UNPARSED, CORRECT, UNPARSED, WRONG]
    assert pool.grade(requests) == expected
    assert pool.grade([]) == []


def test_several_threads_share_one_pool(pool):
    results: dict[int, list[Grade]] = {}

    def work(i: int) -> None:
        results[i] = pool.grade([ask(f"x+{i}", f"{i}+x"), ask(f"x+{i}", f"{i + 1}+x")] * 5)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [CORRECT, WRONG] * 5 for i in range(4)}


def test_answer_over_the_time_limit_is_a_timeout_and_its_neighbours_are_graded():
    # One worker: the right answers wait behind the slow ones, and waiting is not charged to them.
    with GradingPool(n_workers=1, time_limit_s=0.5) as pool:
        requests = [ask("x+1", SLOW), ask("x+1", SLOW), ask("x+1", "1+x"), ask("x+1", "x+3")]
        assert pool.grade(requests) == [TIMEOUT, TIMEOUT, CORRECT, WRONG]


def test_worker_that_is_killed_from_outside_costs_one_timeout_and_is_replaced():
    worker = WorkerProcess(time_limit_s=30.0, memory_limit_mb=512)
    try:
        assert worker.verify("math_verify", "x+1", "1+x") is CORRECT
        process, _ = worker._running
        threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
        assert worker.verify("math_verify", "x+1", SLOW) is TIMEOUT
        assert process.returncode == -signal.SIGKILL
        assert worker.verify("math_verify", "x+1", "1+x") is CORRECT
    finally:
        worker.stop()


def test_answer_over_the_memory_limit_is_a_timeout_and_not_a_crash():
    # 2^(2^35) has 2^35 bits, 4 GiB. The caps would refuse it, so the process is asked directly. It starts with about
    # 65 MiB; were it not for its memory, this would go on for the 500 s that it is given.
    worker = WorkerProcess(time_limit_s=500.0, memory_limit_mb=130)
    try:
        assert worker.verify("math_verify", "2", r"\frac{2^{2^{35}}}{3}") is TIMEOUT
        assert worker.verify("math_verify", "x+1", "1+x") is CORRECT
    finally:
        worker.stop()


def test_process_that_cannot_start_is_an_error_that_says_why():
    with GradingPool(n_workers=1, memory_limit_mb=5) as pool, pytest.raises(GradingError, match="memory_limit_mb 5"):
        pool.grade([ask("x+1", "1+x")])


def test_fault_of_a_grader_is_raised_with_the_answer_that_showed_it():
    worker = WorkerProcess(time_limit_s=30.0, memory_limit_mb=512)
    try:
        with pytest.raises(GradingError, match=r"grader boxed failed .*1\+x.* AssertionError"):
            worker.verify("boxed", "x+1", "1+x")  # a grader that has no verifier
        assert worker.verify("math_verify", "x+1", "1+x") is CORRECT
    finally:
        worker.stop()


def test_worker_loads_no_torch_and_no_main_module_of_the_caller():
    code = "import sys, posttrain.rewards.worker as w; w.warm_up(); print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert outcome.stdout.strip() == "False"


def test_worker_ends_with_its_caller(tmp_path):
    code = (
        "from posttrain.rewards.worker_process import WorkerProcess\n"
        "worker = WorkerProcess(time_limit_s=1.0, memory_limit_mb=512)\n"
        "worker.verify('math_verify', 'x+1', '1+x')\n"
        "print(worker._running[0].pid, flush=True)\n"
        f"worker.verify('math_verify', 'x+1', r'{SLOW}')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        caller.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the worker outlives its caller"
        time.sleep(0.1)


def test_problems_are_graded_by_the_graders_that_they_name(pool):
    def problem(answer: str, grader: str) -> Problem:
        return Problem("test.jsonl:1", "t/1", "p", answer, grader)

    pairs = [
        (problem("x+1", "math_verify"), r"\boxed{1+x}"),
        (problem("18", "final_number"), "#### 18"),
        (problem("18", "lm_eval_flexible"), "18 or 19"),
        (problem("x+1", "reference_extraction"), r"\boxed{2+x}"),
    ]
    assert grade_all(pairs, pool) == [CORRECT, CORRECT, WRONG, WRONG]
    with pytest.raises(ValueError, match=r"test.jsonl:1: the gold answer is 'x'"):
        grade_all([(problem("x", "final_number"), "#### 1")], pool)
    with pytest.raises(ValueError, match=r"test.jsonl:1: grader is 'exact'"):
        grade_all([(problem("x", "exact"), "#### 1")], pool)


@pytest.mark.slow
@pytest.mark.parametrize("grader", [name for name in GRADERS if name != "final_number"])
def test_two_hundred_hostile_answers_are_graded_without_a_hang_and_with_flat_memory(grader):
    # Memory of this process: the answers exist before it is measured; 64 MiB allows for extracted copies.
    gold = "18" if GRADERS[grader].verify is None else "x+18"
    completions = [rf"#### {answer} so \boxed{{{answer}}}" for answer in hostile_answers()]
    assert len(completions) == 200
    with GradingPool(n_workers=2, time_limit_s=1.0) as pool:
        pool.grade([ask("x+1", "1+x")])
        before = resident_mib()
        grades = pool.grade([GradeRequest(gold, completion, grader) for completion in completions])
        assert resident_mib() - before < 64
        assert CORRECT not in grades
        assert pool.grade([ask("x+1", "1+x")]) == [CORRECT]
