"""Problems from GSM8K files, problem rows and reasoning-gym."""

from __future__ import annotations

import json

import pytest

from posttrain.data.problems import bare_prompt, chat_prompt, find_data, read_problems
from posttrain.data.sources import RowsError, write_jsonl

# The files made here are called as a known split on purpose, and are not it.
pytestmark = pytest.mark.filterwarnings("ignore::posttrain.data.known_splits.SplitDiffersWarning")

QUESTION = "How many eggs are 6 boxes of 200?"
SOLUTION = "6 * 200 = <<6*200=1200>>1200 eggs.\n#### 1,200"


@pytest.fixture
def gsm8k(tmp_path):
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    write_jsonl(folder / "test.jsonl", [{"question": QUESTION, "answer": SOLUTION}] * 3)
    return folder / "test.jsonl"


def test_gsm8k_row_keeps_the_number_after_the_marks_without_commas(gsm8k):
    problems = read_problems(gsm8k, limit=2)
    assert [problem.task_id for problem in problems] == ["gsm8k/test/1", "gsm8k/test/2"]
    assert (problems[0].answer, problems[0].grader) == ("1200", "final_number")
    assert problems[0].prompt == f"Question: {QUESTION}\nAnswer:"


def test_answer_without_a_final_number_is_a_fault(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"question": QUESTION, "answer": "many"}])
    with pytest.raises(
        RowsError, match=r"test\.jsonl:1: answer: ends in 'many', expected a last line '#### <number>'"
    ):
        read_problems(tmp_path / "test.jsonl", limit=None)


def test_problem_rows_keep_their_exact_prompt(tmp_path):
    obj = {"task_id": "a/1", "prompt": "1+1=", "answer": "2", "grader": "final_number"}
    write_jsonl(tmp_path / "own.jsonl", [obj])
    (problem,) = read_problems(tmp_path / "own.jsonl", limit=None)
    assert (problem.prompt, problem.task_id, problem.entry) == ("1+1=", "a/1", None)


def test_data_folder_is_searched_when_the_path_is_not_there(gsm8k, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(gsm8k.parent.parent))
    assert len(read_problems("gsm8k/test.jsonl", limit=None)) == 3
    assert find_data("openai/gsm8k:main:test") == "openai/gsm8k:main:test"


def test_chat_prompt_ends_where_the_assistant_begins(char_tokenizer):
    text = chat_prompt("1+1", tokenizer=char_tokenizer, instruction="add")
    assert text == "<bos><system>add<eos>\n<user>1+1<eos>\n<assistant>"


def test_generated_problems_repeat_by_seed_and_satisfy_their_own_verifier():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    source = "reasoning_gym:chain_sum?size=4&seed=7&min_terms=3&max_terms=3"
    problems = read_problems(source, limit=None, template=bare_prompt)
    assert problems == read_problems(source, limit=None, template=bare_prompt)
    assert len({problem.task_id for problem in problems}) == 4
    verify = reasoning_gym.get_score_answer_fn("chain_sum")
    for problem in problems:
        entry = json.loads(problem.entry or "")
        assert problem.prompt == entry["question"] + "\n"
        assert verify(problem.answer, entry) == 1.0
        assert verify(str(int(problem.answer) + 1), entry) < 1.0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reasoning_gym:chain_sun?size=1&seed=1", "no data set 'chain_sun' among its .* did you mean 'chain_sum'"),
        ("reasoning_gym:chain_sum?size=1", "seed is None, expected an integer"),
        ("reasoning_gym:chain_sum?size=1&seed=1&terms=2", "refuses the options .*'terms'"),
        ("reasoning_gym:chain_sum?size=1&seed=1&min_terms=-1", "refuses the options .* must be positive"),
    ],
)
def test_generated_source_that_cannot_be_made_says_why(source, message):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(RowsError, match=message):
        read_problems(source, limit=None)
