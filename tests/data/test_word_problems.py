"""Word problems in GSM8K's form: their arithmetic is right and the library reads them as it reads GSM8K."""

import re

from posttrain.data.problems import read_problems
from posttrain.data.solutions import read_solutions
from posttrain.data.sources import write_jsonl
from posttrain.data.word_problems import STORIES, word_problems
from posttrain.rewards.grade import grade
from posttrain.schema import Grade

ROWS = word_problems(300, seed=4)


def test_every_step_is_right_and_the_second_goes_on_from_the_first():
    for row in ROWS:
        first, second, last = row["answer"].split("\n")
        a, sign_1, b, between = re.fullmatch(r"(\d+) ([+*]) (\d+) = (\d+)", first).groups()
        start, sign_2, c, answer = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", second).groups()
        assert int(between) == (int(a) * int(b) if sign_1 == "*" else int(a) + int(b))
        assert start == between
        assert int(answer) == (int(start) + int(c) if sign_2 == "+" else int(start) - int(c))
        assert last == f"#### {answer}"
        assert sorted(re.findall(r"\d+", row["question"])) == sorted((a, b, c))
        assert int(answer) > 0


def test_questions_are_distinct_and_all_stories_are_told():
    assert len({row["question"] for row in ROWS}) == len(ROWS)
    openings = {re.sub(r"\d+|[A-Z][a-z]+ ", "", row["question"])[:12] for row in ROWS}
    assert len(openings) >= len(STORIES)


def test_a_seed_fixes_the_problems_and_fewer_are_their_beginning():
    assert word_problems(20, seed=4) == ROWS[:20]
    assert word_problems(20, seed=5) != ROWS[:20]


def test_they_are_read_as_gsm8k_and_their_own_solution_is_graded_right(tmp_path):
    source = tmp_path / "train.jsonl"
    write_jsonl(source, ROWS)
    problems, solutions = read_problems(source, limit=None), read_solutions(source, limit=None)
    assert len(problems) == len(solutions) == len(ROWS)
    for problem, solution in zip(problems, solutions, strict=True):
        assert solution.prompt == problem.prompt
        assert grade(problem, solution.completion) is Grade.CORRECT
        assert grade(problem, solution.completion + "7") is Grade.WRONG
