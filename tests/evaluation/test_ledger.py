"""An evaluation that dies, is shared, or is asked again: the same set of records in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from posttrain.evaluation.decoding import Greedy, Sampled, Stepwise
from posttrain.evaluation.ledger import Ledger, expected_keys, keyed, problem_key
from posttrain.evaluation.records import append_records, read_records
from posttrain.schema import AnswerRecord, FinishReason, Grade, Problem
from posttrain.search.spec import Algorithm
from tests.evaluation.tiny_policy import write_policy, write_problems, write_value_model

REPOSITORY = Path(__file__).resolve().parents[2]
PROBLEM = Problem("here:1", "sum/1", "3+4=", "7", "final_number")
RECORD = AnswerRecord("sum/1", "tiny/greedy", 0, 1, "#### 7", Grade.CORRECT, FinishReason.STOP, 3, None)
N_PROBLEMS, N_TRIALS = 24, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    policy = write_policy(folder / "policy")
    write_value_model(folder / "value", policy)
    starts = tuple(" ".join(map(str, random.Random(n).choices(range(4), k=3))) for n in range(N_PROBLEMS))
    write_problems(folder / "problems.jsonl", starts)
    return folder


def command(folder: Path, output: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "posttrain", "eval", "run", str(folder / "problems.jsonl"), "--name", "tiny"]
    words += ["--model", str(folder / "policy"), "--value_model", str(folder / "value"), "--output", str(output)]
    words += ["--decoding", "greedy", "sample:4", "beam:2x2", "--max_new_tokens", "12", "--problems_per_chunk", "2"]
    return [*words, "--device", "cpu", *more]


def start(folder: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command(folder, output, *more),
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def lines(path: Path) -> Counter[str]:
    return Counter(path.read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def unbroken(folder) -> Counter[str]:
    output = folder / "unbroken" / "answers.jsonl"
    assert start(folder, output).wait(timeout=300) == 0
    found = lines(output)
    # greedy, 4 samples, two votes and the best of 2 and of 4, and a beam, for each problem
    assert (len(found), found.total()) == (N_PROBLEMS * (1 + 4 + 6 + 1),) * 2
    return found


def test_keys_change_with_what_is_asked_and_how_and_not_with_where_it_stood():
    asked = {"model": "a", "seed": 0}
    key = problem_key(PROBLEM, asked)
    assert key == problem_key(Problem("there:9", "sum/1", "3+4=", "7", "final_number"), {"seed": 0, "model": "a"})
    others = [
        problem_key(Problem("here:1", "sum/1", "3 + 4 =", "7", "final_number"), asked),
        problem_key(Problem("here:1", "sum/1", "3+4=", "8", "final_number"), asked),
        problem_key(Problem("here:1", "sum/1", "3+4=", "7", "boxed"), asked),
        problem_key(PROBLEM, {**asked, "seed": 1}),
    ]
    assert len({key, *others}) == 5


@pytest.mark.parametrize(
    ("decoding", "has_value", "n"),
    [(Greedy(), True, 1), (Sampled(4), True, 10), (Sampled(4), False, 6), (Stepwise(Algorithm.BEAM, 2, 2), True, 1)],
)
def test_expected_keys_are_those_that_records_get(decoding, has_value, n):
    # sample:4 gives 4 samples, the majority of 2 and 4 and, with a value model, their weighted majority and best
    keys = expected_keys("k", decoding, has_value=has_value)
    assert len(keys) == n
    if isinstance(decoding, Greedy):
        [record] = keyed([RECORD], {"sum/1": "k"})
        assert {record.key} == keys


def test_a_ledger_adds_no_record_twice_and_sees_what_others_add(tmp_path):
    path = tmp_path / "answers.jsonl"
    ours, theirs = Ledger(path, name="tiny"), Ledger(path, name="tiny")
    [record] = keyed([RECORD], {"sum/1": "k"})
    theirs.add([record])
    assert not ours.has({"k/greedy:1/0"})
    ours.add([record])
    assert ours.has({"k/greedy:1/0"})
    assert len(read_records(path)) == 1


def test_a_chunk_is_held_by_one_ledger_at_a_time(tmp_path):
    first, second = (Ledger(tmp_path / "answers.jsonl", name="tiny") for _ in range(2))
    with first.claim("greedy-0", is_waiting=False) as is_ours:
        assert is_ours
        with (
            second.claim("greedy-0", is_waiting=False) as is_theirs,
            second.claim("greedy-1", is_waiting=False) as free,
        ):
            assert (is_theirs, free) == (False, True)
    with second.claim("greedy-0", is_waiting=False) as is_theirs:
        assert is_theirs


def test_answers_without_keys_under_the_same_name_are_refused_and_those_of_others_are_left_alone(tmp_path):
    path = tmp_path / "answers.jsonl"
    append_records(path, [RECORD])
    Ledger(path, name="other").refresh()
    with pytest.raises(
        ValueError, match="has answers of 'tiny' without keys, of an older version: name another output"
    ):
        Ledger(path, name="tiny").refresh()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_evaluation_killed_at_ten_random_moments_ends_with_the_records_of_an_unbroken_one(
    folder, unbroken, tmp_path
):
    output, rng, n_grown = tmp_path / "answers.jsonl", random.Random(3), set()
    for _ in range(N_TRIALS):
        process, n_before = start(folder, output), output.stat().st_size if output.exists() else 0
        deadline = time.monotonic() + 120
        n_wanted = n_before + rng.randrange(1, 4000)  # bytes of new records after which it is shot
        while process.poll() is None and time.monotonic() < deadline:
            if output.exists() and output.stat().st_size >= n_wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait(timeout=60)
        n_grown.add(output.stat().st_size)
    assert len(n_grown) > 3  # it was shot at different places, and went on each time
    assert start(folder, output).wait(timeout=300) == 0
    assert lines(output) == unbroken


@pytest.mark.slow
def test_two_processes_that_share_an_evaluation_write_the_records_of_one(folder, unbroken, tmp_path):
    output = tmp_path / "answers.jsonl"
    processes = [start(folder, output) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert lines(output) == unbroken


@pytest.mark.slow
def test_a_torn_line_is_cut_off_and_its_chunk_answered_again(folder, unbroken, tmp_path):
    output = tmp_path / "answers.jsonl"
    whole = (folder / "unbroken" / "answers.jsonl").read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    assert start(folder, output).wait(timeout=300) == 0
    assert lines(output) == unbroken
    card = json.loads((tmp_path / "evaluations/tiny/run.json").read_text())
    assert card["config"]["protocol"]["name"] == "template-plain"
