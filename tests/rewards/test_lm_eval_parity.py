"""Our two lm-eval graders against lm-eval, row by row: its recorded verdicts, and the package where it is there."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from posttrain.data.problems import find_data, read_problems
from posttrain.rewards.graders import GRADERS
from posttrain.schema import Grade
from tests.rewards.lm_eval_verdicts import Verdict, gold_solutions, judge, read_verdicts

NO_LM_EVAL = "lm_eval is not installed: pip install lm-eval==0.4.13"
NO_GSM8K = "gsm8k/test.jsonl is not at hand: point POSTTRAIN_DATA at a folder that has it"


def differences(verdicts: list[Verdict]) -> list[str]:
    """Where a grade of ours is not lm-eval's score, or where one of the two finds an answer and the other none."""
    found: list[str] = []
    for verdict in verdicts:
        gold = verdict.solution.rpartition("#### ")[2].replace(",", "")
        for name, is_match, answer in (
            ("lm_eval_strict", verdict.strict, verdict.strict_answer),
            ("lm_eval_flexible", verdict.flexible, verdict.flexible_answer),
        ):
            grade = GRADERS[name](gold, verdict.completion)
            theirs = Grade.CORRECT if is_match else Grade.UNPARSED if answer == "[invalid]" else Grade.WRONG
            if grade is not theirs:
                found.append(
                    f"{name}: ours {grade}, theirs {theirs} ({answer!r}), gold {gold}: {verdict.completion!r}"
                )
    return found


def test_grades_are_those_that_lm_eval_gave_row_by_row():
    verdicts = read_verdicts()
    assert len(verdicts) >= 500
    assert differences(verdicts) == []
    # The record is not one-sided: each filter has matches, misses and answers that it cannot find.
    for is_match, answer in (("strict", "strict_answer"), ("flexible", "flexible_answer")):
        kinds = Counter((getattr(v, is_match), getattr(v, answer) == "[invalid]") for v in verdicts)
        assert min(kinds[kind] for kind in ((True, False), (False, False), (False, True))) > 50


@pytest.mark.skipif(find_spec("lm_eval") is None, reason=NO_LM_EVAL)
def test_recorded_verdicts_are_what_the_installed_lm_eval_says():
    recorded = read_verdicts()
    assert judge([(v.solution, v.completion) for v in recorded]) == recorded


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason=NO_LM_EVAL)
def test_every_gold_solution_gets_the_same_grade_from_lm_eval_and_us_right_and_shuffled():
    path = Path(find_data("gsm8k/test.jsonl"))
    if not path.is_file():
        pytest.skip(NO_GSM8K)
    solutions = gold_solutions(path)
    right = judge([(solution, solution) for solution in solutions])
    assert differences(right) == []
    assert all(verdict.strict and verdict.flexible for verdict in right)
    assert differences(judge(list(zip(solutions, solutions[1:] + solutions[:1], strict=True)))) == []


def test_gold_answer_of_a_problem_is_the_text_that_lm_eval_compares_with():
    # lm-eval takes the whole solution as its gold text and removes what precedes "#### ", commas and a full stop.
    path = Path(find_data("gsm8k/test.jsonl"))
    if not path.is_file():
        pytest.skip(NO_GSM8K)
    golds = [solution.rpartition("#### ")[2].replace(",", "") for solution in gold_solutions(path)]
    assert golds == [problem.answer for problem in read_problems(path, limit=None)]
