"""`posttrain eval compare` and `eval validate` on files whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.evaluation.compare_files import CompareConfig, compare_files
from posttrain.evaluation.records import append_records
from posttrain.evaluation.validate import ValidateConfig, validate
from posttrain.schema import AnswerRecord, FinishReason, Grade
from tests.evaluation.tiny_policy import STARTS, write_problems

REMAINDERS = [sum(map(int, start.split())) % 4 for start in STARTS]


def answers(method: str, given: list[int]) -> list[AnswerRecord]:
    return [
        AnswerRecord(
            task_id=f"sum/{task}",
            method=method,
            seed=0,
            budget=1,
            text=f"#### {number}",
            grade=Grade.CORRECT if number == REMAINDERS[task] else Grade.WRONG,
            finish_reason=FinishReason.STOP,
            n_generated_tokens=2,
            value=None,
            key=f"{method}/{task}",
        )
        for task, number in enumerate(given)
    ]


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    append_records(a, answers("oreo/greedy", REMAINDERS))
    append_records(b, answers("sft/greedy", [REMAINDERS[0], *(9 for _ in REMAINDERS[1:])]))
    return a, b


def test_compare_pairs_the_decodings_that_both_files_have(files, capsys):
    compare_files(CompareConfig(*files))
    [row] = [line for line in capsys.readouterr().out.splitlines() if "oreo/greedy" in line]
    n = len(STARTS) - 1
    assert f"| {len(STARTS)} |" in row
    assert f"{100 * n / len(STARTS):+.1f}" in row
    assert f"{n} : 0" in row  # solved by a alone, by b alone
    assert row.endswith("| 0.06 |")  # McNemar's exact p: 2 / 2^5, all five discordant problems on one side


def test_compare_of_two_methods_in_one_file_takes_each_pair_once(files, tmp_path, capsys):
    joined = tmp_path / "joined.jsonl"
    joined.write_text(files[0].read_text() + files[1].read_text())
    compare_files(CompareConfig(joined, joined))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "against" in line]
    assert len(rows) == 2  # the header and one pair


def test_compare_names_what_cannot_be_paired(files, tmp_path):
    with pytest.raises(ValueError, match="has no answers by dpo/greedy; it has oreo/greedy"):
        compare_files(CompareConfig(*files, a_method="dpo/greedy"))
    other = tmp_path / "other.jsonl"
    append_records(
        other, [replace(record, task_id=f"x/{n}") for n, record in enumerate(answers("sft/greedy", [1, 2]))]
    )
    with pytest.raises(ValueError, match="sum/0"):
        compare_files(CompareConfig(files[0], other))


def test_validate_passes_a_sound_file_and_makes_its_grades_anew(files, tmp_path, capsys):
    problems = write_problems(tmp_path / "problems.jsonl")
    assert validate(ValidateConfig(files[0], problems=str(problems))) == 0
    assert f"{len(STARTS)} records of {len(STARTS)} problems, sound" in capsys.readouterr().out


def test_validate_says_what_is_wrong(files, tmp_path, capsys):
    problems = write_problems(tmp_path / "problems.jsonl")
    good = answers("oreo/greedy", REMAINDERS)
    path = tmp_path / "bad.jsonl"
    flattered = replace(answers("sft/greedy", [9])[0], grade=Grade.CORRECT)
    append_records(path, [*good[:2], replace(good[0], method="oreo/beam"), flattered])
    assert validate(ValidateConfig(path, problems=str(problems))) == 1
    said = capsys.readouterr().out
    assert "1 keys are on file more than once, the first oreo/greedy/0" in said
    assert "oreo/beam, n = 1: 1 problems are missing, the first sum/1" in said
    assert "1 of 4 grades are others now" in said
    assert "sum/0 (sft/greedy): was correct, is wrong" in said
    assert "not sound" in said
