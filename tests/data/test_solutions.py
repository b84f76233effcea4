"""Worked solutions of GSM8K and MATH as rows for SFT, and where the steps of a MATH solution begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.cli import main
from posttrain.data.answers import as_trajectory
from posttrain.data.encode import encode_trajectory
from posttrain.data.problems import bare_prompt, find_data, plain_prompt, read_problems
from posttrain.data.rows import parse_completion
from posttrain.data.solutions import read_solutions
from posttrain.data.sources import OnBadRow, RowsError, read_rows, write_jsonl

# The files made here are called as a known split on purpose, and are not it.
pytestmark = pytest.mark.filterwarnings("ignore::posttrain.data.known_splits.SplitDiffersWarning")

EGGS = {"question": "How many eggs?", "answer": "6 * 200 = <<6*200=1200>>1200 eggs.\n#### 1,200"}
SUM = {
    "problem": "What is $1+1$?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": "We add $1$ and $1.$ It is 1.5 and .5. So\nit is $\\boxed{2}.$",
}
MATH_STEPS = ("\n", ". ", ".$ ")  # arXiv 2412.16145 v2, appendix A.2: line ends and sentence ends


def test_gsm8k_solution_loses_its_calculator_marks_and_keeps_its_last_line(tmp_path):
    write_jsonl(tmp_path / "gsm8k.jsonl", [EGGS])
    (row,) = read_solutions(tmp_path / "gsm8k.jsonl", limit=None)
    assert (row.prompt, row.completion) == (plain_prompt("How many eggs?"), " 6 * 200 = 1200 eggs.\n#### 1,200")
    (row,) = read_solutions(tmp_path / "gsm8k.jsonl", limit=None, template=bare_prompt)
    assert f"{row.prompt}{row.completion}" == "How many eggs?\n6 * 200 = 1200 eggs.\n#### 1,200"


def test_math_solution_is_kept_as_it_is_with_the_prompt_that_its_problem_has(tmp_path):
    write_jsonl(tmp_path / "math.jsonl", [SUM])
    (row,) = read_solutions(tmp_path / "math.jsonl", limit=None)
    (problem,) = read_problems(tmp_path / "math.jsonl", limit=None)
    assert (row.prompt, row.completion) == (problem.prompt, " " + SUM["solution"])


def test_steps_of_a_math_solution_end_with_lines_and_sentences_and_not_inside_numbers(tmp_path, char_tokenizer):
    write_jsonl(tmp_path / "math.jsonl", [SUM])
    (row,) = read_solutions(tmp_path / "math.jsonl", limit=None, template=bare_prompt)
    trajectory = as_trajectory(row.prompt, row.completion, where="f:1", task_id="t", reward=None)
    encoded = encode_trajectory(trajectory, char_tokenizer, 0, step_delimiters=MATH_STEPS)
    steps: list[list[int]] = []
    for token, is_action, is_start in zip(encoded.input_ids, encoded.is_action, encoded.is_step_start, strict=True):
        if is_start:
            steps.append([])
        if is_action:
            steps[-1].append(token)
    assert [char_tokenizer.decode(step) for step in steps] == [
        "We add $1$ and $1.$ ",
        "It is 1.5 and .5. ",
        "So\n",
        "it is $\\boxed{2}.$<eos>",
    ]


def test_command_writes_rows_that_sft_reads(tmp_path, capsys):
    write_jsonl(tmp_path / "math.jsonl", [SUM, {**SUM, "problem": "And $2$?"}])
    output = tmp_path / "new" / "sft.jsonl"
    assert main(["data", "solutions", str(tmp_path / "math.jsonl"), "--output", str(output), "--limit", "1"]) == 0
    assert "sft.jsonl: 1 solutions; the first prompt is\nQuestion: What is $1+1$?\nAnswer:" in capsys.readouterr().out
    assert json.loads(output.read_text()) == {
        "prompt": plain_prompt("What is $1+1$?"),
        "completion": " " + SUM["solution"],
    }
    assert len(read_rows(output, parse_completion, on_bad_row=OnBadRow.ERROR).rows) == 1


@pytest.mark.parametrize("split", ["gsm8k/test.jsonl", "math/math500.jsonl"])
def test_test_splits_are_refused(split, tmp_path, capsys):
    file = tmp_path / split
    file.parent.mkdir()
    write_jsonl(file, [EGGS])
    assert main(["data", "solutions", str(file), "--output", str(tmp_path / "sft.jsonl")]) == 2
    assert "is a test split" in capsys.readouterr().err
    assert not (tmp_path / "sft.jsonl").exists()


def test_chat_template_needs_its_tokenizer_and_a_row_its_solution(tmp_path, capsys):
    assert main(["data", "solutions", "x.jsonl", "--output", "y.jsonl", "--template", "chat"]) == 2
    assert "template chat needs one" in capsys.readouterr().err
    write_jsonl(tmp_path / "math.jsonl", [{**SUM, "solution": None}])
    with pytest.raises(RowsError, match=r"math\.jsonl:1: solution: "):
        read_solutions(tmp_path / "math.jsonl", limit=None)


def test_math_train_has_a_solution_and_a_problem_for_each_row():
    if not Path(find_data("math/math_train.jsonl")).is_file():
        pytest.skip("math/math_train.jsonl is not at hand: point POSTTRAIN_DATA at a folder that has it")
    rows = read_solutions("math/math_train.jsonl", limit=None)
    problems = read_problems("math/math_train.jsonl", limit=None)
    assert len(rows) == 7500
    assert [row.prompt for row in rows] == [problem.prompt for problem in problems]
    assert all(problem.task_id.startswith("math/train/") and problem.answer in str(row.completion)
               for row, problem in zip(rows, problems, strict=True))  # fmt: skip
