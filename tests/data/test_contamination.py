"""Shared runs of words between a training file and a test split."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.cli import main
from posttrain.data.contamination import find_overlaps, word_runs
from posttrain.data.problems import find_data
from posttrain.data.sources import RowsError, write_jsonl


def words(first: int, last: int) -> str:
    return " ".join(f"w{i}" for i in range(first, last + 1))


@pytest.fixture
def files(tmp_path):
    """A test split of four questions and a training file of three rows, in words w1, w2, ..."""
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    write_jsonl(
        tmp_path / "test.jsonl",
        [
            {"question": words(1, 8), "answer": "#### 1"},  # 4 runs of 5
            {"question": words(101, 108), "answer": words(1, 8)},  # its answer is not looked for
            {"question": words(201, 203), "answer": "#### 1"},  # short: one run of 3
            {"question": f"{words(301, 304)} [asy] {words(1, 8)} [/asy] {words(305, 306)}", "answer": "#### 1"},
        ],
    )
    write_jsonl(
        tmp_path / "train.jsonl",
        [
            {"prompt": words(2, 6).upper(), "completion": "x"},  # 1 of the 4 runs of the first question
            {"prompt": "x", "completion": f"x {words(1, 7)}, {words(201, 203)}."},  # 3 of the 4, and the short one
            {"messages": [{"role": "user", "content": f"x {words(101, 104)} y {words(105, 108)}"}]},  # runs of 4
        ],
    )
    return train, test


def test_overlap_is_the_share_of_runs_that_the_nearest_training_row_has(files):
    found = find_overlaps(*files, n=5)
    assert (found.n_problems, found.n_short, found.n_train_rows) == (4, 1, 3)
    assert [(o.where, o.n_shared, o.n_grams, o.train_where) for o in found.overlaps] == [
        ("test.jsonl:3", 1, 1, "train.jsonl:2"),
        ("test.jsonl:1", 3, 4, "train.jsonl:2"),
    ]


def test_shorter_runs_touch_more_problems(files):
    # With n = 4 the third training row has 2 of the 5 runs of the second question: w101..104 and w105..108.
    overlaps = {o.where: (o.n_shared, o.n_grams) for o in find_overlaps(*files, n=4).overlaps}
    assert overlaps["test.jsonl:2"] == (2, 5)


def test_words_are_compared_without_case_punctuation_and_drawings():
    assert list(word_runs("What is $x^2$? [asy]draw(a);[/asy] Say!", 3)) == [
        ("what", "is", "x"),
        ("is", "x", "2"),
        ("x", "2", "say"),
    ]
    assert list(word_runs("?!", 3)) == []


def test_rows_without_a_question_are_no_test_split(files, tmp_path):
    write_jsonl(tmp_path / "odd.jsonl", [{"text": "x"}])
    with pytest.raises(RowsError, match=r"odd.jsonl:1: has none of the columns question, problem"):
        find_overlaps(files[0], str(tmp_path / "odd.jsonl"), n=5)


def test_command_prints_the_share_and_the_worst_problems_with_their_lines(files, capsys):
    assert main(["data", "contamination", "--train", files[0], "--test", files[1], "--n", "5", "--n_shown", "1"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 4 test problems (50.00 %) share a run of 5 words with one of 3 training rows" in printed
    assert "test.jsonl:3  100 % (1 of 1 runs)  in train.jsonl:2\n    w201 w202 w203" in printed
    assert "... and 1 more (--n_shown)" in printed


def test_gsm8k_test_problems_that_the_training_split_touches_are_the_three_known_ones():
    if not Path(find_data("gsm8k/test.jsonl")).is_file():
        pytest.skip("gsm8k/ is not at hand: point POSTTRAIN_DATA at a folder that has it")
    found = find_overlaps("gsm8k/train.jsonl", "gsm8k/test.jsonl", n=13)
    assert [o.where for o in found.overlaps] == ["test.jsonl:603", "test.jsonl:633", "test.jsonl:582"]
