"""MATH rows as problems, and the splits that have a card."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

from posttrain.data.fields import RowError
from posttrain.data.known_splits import KNOWN_SPLITS, SplitDiffersWarning, difference, known_split
from posttrain.data.math_problems import parse_math_problem
from posttrain.data.problems import find_data, plain_prompt, read_problems
from posttrain.data.sources import Rows, write_jsonl

CARDS = Path(__file__).resolve().parents[2] / "data"
ROW = {
    "unique_id": "test/algebra/1.json",
    "problem": "What is $1+1$?",
    "level": "Level 3",
    "type": "Algebra",
    "solution": r"It is $\boxed{2}$.",
    "answer": "2",
}


def changed(**columns: object) -> dict[str, object]:
    return {name: value for name, value in {**ROW, **columns}.items() if value is not None}


def test_math_row_keeps_answer_id_subject_and_level(tmp_path):
    write_jsonl(tmp_path / "math.jsonl", [ROW])
    (problem,) = read_problems(tmp_path / "math.jsonl", limit=None)
    assert (problem.task_id, problem.answer, problem.grader) == ("math/test/algebra/1.json", "2", "math_verify")
    assert problem.prompt == plain_prompt("What is $1+1$?")
    assert dict(problem.tags) == {"subject": "Algebra", "level": "3"}


@pytest.mark.parametrize(
    ("columns", "answer", "task_id", "tags"),
    [
        ({"level": 5, "type": None, "subject": "Geometry"}, "2", "math/test/algebra/1.json", ("Geometry", "5")),
        ({"level": "Level ?"}, "2", "math/test/algebra/1.json", ("Algebra", "?")),
        ({"answer": None, "unique_id": None}, "2", "math/tiny/7", ("Algebra", "3")),
    ],
)
def test_other_forms_of_the_rows_are_read_alike(columns, answer, task_id, tags):
    problem = parse_math_problem(changed(**columns), "tiny.jsonl:7", split="tiny", template=plain_prompt)
    assert (problem.answer, problem.task_id, tuple(value for _, value in problem.tags)) == (answer, task_id, tags)


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"answer": None, "solution": "It is 2."}, r"x.jsonl:1: solution: ends in 'It is 2.', expected a \boxed{}"),
        ({"level": "hard"}, "x.jsonl:1: level: got 'hard', expected"),
        ({"level": 9}, "x.jsonl:1: level: got '9', expected"),
        ({"type": None}, "x.jsonl:1: type: is missing, expected the subject"),
        ({"problem": 3}, "x.jsonl:1: problem: got 3 (an integer), expected text"),
    ],
)
def test_row_that_is_no_problem_of_math_is_a_fault_with_its_line(columns, fault):
    with pytest.raises(RowError, match=re.escape(fault)):
        parse_math_problem(changed(**columns), "x.jsonl:1", split="x", template=plain_prompt)


def test_cards_state_the_rows_and_hashes_that_the_reader_checks():
    table_row = re.compile(r"\| `([\w.]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|")
    stated = {
        (f"{card.parent.name}/{name}", int(n_rows.replace(",", "")), sha256)
        for card in CARDS.glob("*/README.md")
        for name, n_rows, sha256 in table_row.findall(card.read_text())
        if card.parent.name in ("gsm8k", "math")
    }
    assert stated == {(split.file, split.n_rows, split.sha256) for split in KNOWN_SPLITS}
    hub_ids = {split.hub for split in KNOWN_SPLITS if split.hub}
    text = "".join((CARDS / folder / "README.md").read_text() for folder in ("gsm8k", "math"))
    assert all(hub_id in text for hub_id in hub_ids)


def test_known_split_with_other_rows_is_a_warning_that_says_what_came_and_what_was_needed(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    path = tmp_path / "gsm8k" / "test.jsonl"
    write_jsonl(path, [{"question": "1+1?", "answer": "#### 2"}])
    with pytest.warns(SplitDiffersWarning, match=r"holds 1 rows with sha256 \w{12}; .* 1,319 rows with sha256 3730d3"):
        read_problems(path, limit=None)
    write_jsonl(tmp_path / "test.jsonl", [{"question": "1+1?", "answer": "#### 2"}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_problems(tmp_path / "test.jsonl", limit=None)


def test_hub_source_of_a_known_split_is_held_to_its_number_of_rows():
    hub = "openai/gsm8k:main:test"
    assert known_split(hub) is known_split("somewhere/gsm8k/test.jsonl")
    assert difference(Rows(hub, (), 1319, 0, "of the rows, not of a file")) is None
    assert "holds 1,318 rows; the split of that name has 1,319 rows" in (difference(Rows(hub, (), 1318, 0, "x")) or "")


@pytest.mark.parametrize("split", KNOWN_SPLITS, ids=lambda split: split.file)
def test_files_at_hand_are_what_the_cards_say(split):
    if not Path(find_data(split.file)).is_file():
        pytest.skip(f"{split.file} is not at hand: point POSTTRAIN_DATA at a folder that has it")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problems = read_problems(split.file, limit=None)
    assert len(problems) == split.n_rows
    if split.file == "math/math_test.jsonl":  # as counted in its card
        levels = Counter(dict(problem.tags)["level"] for problem in problems)
        assert levels == {"1": 437, "2": 894, "3": 1131, "4": 1214, "5": 1324}
        assert len({problem.task_id for problem in problems}) == 5000
