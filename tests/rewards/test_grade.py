"""Grading as tables: what is right, what is wrong, what cannot be read, and what must do no harm."""

from __future__ import annotations

import json

import pytest
import reasoning_gym

from posttrain.rewards.final_number import MAX_CHARACTERS, final_answer
from posttrain.rewards.grade import grade
from posttrain.schema import Grade, Problem

CORRECT, WRONG, UNPARSED = Grade.CORRECT, Grade.WRONG, Grade.UNPARSED


def number_problem(answer: str) -> Problem:
    return Problem("test.jsonl:1", "t/1", "Question: ?\nAnswer:", answer, "final_number")


def gym_problem(dataset: str, index: int = 0, **options: int) -> Problem:
    entry = reasoning_gym.create_dataset(dataset, size=index + 1, seed=1, **options)[index]
    return Problem("gym:1", "t/1", entry["question"], entry["answer"], f"reasoning_gym:{dataset}", json.dumps(entry))


@pytest.mark.parametrize(
    ("gold", "completion", "expected"),
    [
        ("18", "9 * 2 = 18\n#### 18", CORRECT),
        ("18", "#### 18\n\n  \n", CORRECT),
        ("18", "####18", CORRECT),
        ("18", "So the answer is #### 18.", CORRECT),
        ("18", "#### $18", CORRECT),
        ("18", "#### 18$", CORRECT),
        ("18", "#### 18.00", CORRECT),
        ("18", "#### 018", CORRECT),
        ("18", "#### +18", CORRECT),
        ("1800", "#### 1,800", CORRECT),
        ("1,800", "#### 1800.", CORRECT),
        ("1234567.5", "#### 1,234,567.50", CORRECT),
        ("-5", "#### -5", CORRECT),
        ("-5", "#### \u22125", CORRECT),  # the minus sign of typography
        ("-5", "#### -$5", CORRECT),
        ("-5", "#### $-5.", CORRECT),
        ("0.5", "#### .5", CORRECT),
        ("0", "#### -0", CORRECT),
        ("18", "#### 1\n#### 18", CORRECT),
        ("18", "#### 1 #### 18", CORRECT),
        ("18", "#### 19", WRONG),
        ("18", "#### -18", WRONG),
        ("18", "#### 18.000001", WRONG),
        ("18", "#### 18\n#### 19", WRONG),
        ("0.1", "#### 0.1000000000000000055511151231257827", WRONG),  # equal as floats
        ("9007199254740992", "#### 9007199254740993", WRONG),  # equal as floats
        ("18", "", UNPARSED),
        ("18", "\n \n", UNPARSED),
        ("18", "18", UNPARSED),
        ("18", "The answer is 18", UNPARSED),
        ("18", "### 18", UNPARSED),
        ("18", "####", UNPARSED),
        ("18", "#### ", UNPARSED),
        ("18", "#### 18\nQuestion: what else?", UNPARSED),  # went on after its answer
        ("18", "#### 18 apples", UNPARSED),
        ("18", "#### x = 18", UNPARSED),
        ("18", "#### 18%", UNPARSED),
        ("18", "#### 36/2", UNPARSED),
        ("18", "#### 9*2", UNPARSED),
        ("18", "#### 1.8e1", UNPARSED),
        ("18", "#### 18..", UNPARSED),
        ("18", "#### --18", UNPARSED),
        ("18", "#### 1 8", UNPARSED),
        ("1800", "#### 18,00", UNPARSED),  # commas out of place
        ("1800", "#### ,1800", UNPARSED),
        ("18", "#### 1_8", UNPARSED),  # int() would read it
        ("18", "#### \u0661\u0668", UNPARSED),  # Arabic-Indic digits; Decimal() would read them
        ("18", "#### \uff11\uff18", UNPARSED),  # full-width digits
        ("18", "#### 1\u00b2", UNPARSED),
        ("18", "#### NaN", UNPARSED),
        ("18", "#### Infinity", UNPARSED),
        ("18", "#### 18\x00", UNPARSED),
        ("18", "\u2028#### 18", CORRECT),  # a line separator is a line break
    ],
)
def test_final_number_is_graded_exactly(gold, completion, expected):
    assert grade(number_problem(gold), completion) is expected


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os')._exit(1)",
        "9**9**9**9",
        "(lambda: 0)()",
        "9" * 200_000,
        "-" * 200_000,
        "1," * 100_000,
        "0" * 5_000 + "." + "0" * 4_000,
        "#### " * 50_000,
        "\\frac{1}{0}",
    ],
)
def test_hostile_text_is_neither_run_nor_waited_for(answer):
    for problem in (number_problem("18"), gym_problem("chain_sum"), gym_problem("gsm_symbolic")):
        assert grade(problem, f"#### {answer}") in (WRONG, UNPARSED)


def test_only_the_end_of_a_long_completion_is_looked_at():
    filler = "x" * 2 * MAX_CHARACTERS
    assert grade(number_problem("18"), filler + "\n#### 18") is CORRECT
    assert final_answer("#### 18" + filler) is None  # the mark lies before the part that is read


@pytest.mark.parametrize(
    "dataset", ["chain_sum", "basic_arithmetic", "gsm_symbolic", "products", "lcm", "leg_counting"]
)
def test_reasoning_gym_gold_answers_are_correct_and_others_wrong(dataset):
    for index in range(5):
        problem = gym_problem(dataset, index)
        assert grade(problem, f"some steps\n#### {problem.answer}") is CORRECT
        assert grade(problem, f"#### {int(problem.answer) + 1}") is WRONG
        assert grade(problem, problem.answer) is UNPARSED


def test_wrong_sign_is_wrong_though_the_verifier_of_gsm_symbolic_overlooks_it():
    problem = gym_problem("gsm_symbolic")
    verifier = reasoning_gym.get_score_answer_fn("gsm_symbolic")
    assert verifier(f"-{problem.answer}", json.loads(problem.entry)) == 1.0  # what we guard against
    assert grade(problem, f"#### -{problem.answer}") is WRONG


def test_text_answers_are_compared_as_text_by_the_default_verifier():
    problem = gym_problem("isomorphic_strings")
    other = {"True": "False", "False": "True"}[problem.answer]
    assert grade(problem, f"#### {problem.answer}") is CORRECT
    assert grade(problem, f"#### {other}") is WRONG


@pytest.mark.parametrize("dataset", ["spiral_matrix", "countdown", "simple_integration", "polynomial_multiplication"])
def test_data_set_whose_verifier_parses_model_text_is_refused(dataset):
    with pytest.raises(ValueError, match=f"verifier of reasoning-gym's '{dataset}' may evaluate"):
        grade(gym_problem(dataset), "#### 1")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (number_problem("eighteen"), "test.jsonl:1: the gold answer is 'eighteen'"),
        (Problem("a:1", "t", "p", "1", "exact"), "a:1: grader is 'exact', needs 'final_number'"),
        (Problem("a:1", "t", "p", "1", "reasoning_gym:chain_sum"), "a:1: grader .* needs the problem's `entry`"),
        (Problem("a:1", "t", "x", "x", "reasoning_gym:no_such", "{}"), "no data set 'no_such'"),
    ],
)
def test_problem_that_cannot_be_graded_is_an_error_that_names_it(problem, message):
    with pytest.raises(ValueError, match=message):
        grade(problem, "#### 1")
