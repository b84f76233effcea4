"""What an evaluation says at its end, on answers whose numbers are counted by hand."""

from __future__ import annotations

import itertools
import json

import pytest

from posttrain.evaluation.outcome import disagreements, pass_at, summary, write_outcome
from posttrain.schema import AnswerRecord, FinishReason, Grade

CORRECT, WRONG, TIMEOUT = Grade.CORRECT, Grade.WRONG, Grade.TIMEOUT
SAMPLES = {
    "a": [CORRECT, WRONG, WRONG, WRONG],
    "b": [WRONG, WRONG, TIMEOUT, WRONG],
    "c": [CORRECT, CORRECT, WRONG, WRONG],
}
LEVELS = {"a": "1", "b": "1", "c": "2"}


def record(task: str, how: str, grade: Grade, *, grades=()) -> AnswerRecord:
    tags = (("level", LEVELS[task]),)
    return AnswerRecord(task, f"p/{how}", 0, 1, "text", grade, FinishReason.STOP, 3, None, grades=grades, tags=tags)


DRAWN = [record(task, "sample", grade) for task, grades in SAMPLES.items() for grade in grades]
GREEDY = [record("a", "greedy", CORRECT), record("b", "greedy", WRONG), record("c", "greedy", CORRECT)]


@pytest.mark.parametrize("k", [2, 4])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_correct_answer(k):
    subsets = [subset for grades in SAMPLES.values() for subset in itertools.combinations(grades, k)]
    expected = sum(CORRECT in subset for subset in subsets) / len(subsets)  # as many subsets for each problem
    at = pass_at(DRAWN)["p", k]
    assert at.estimate == pytest.approx(expected)
    assert 0 <= at.low <= at.estimate <= at.high <= 1
    assert set(pass_at(DRAWN)) == {("p", 2), ("p", 4)}
    assert pass_at(GREEDY) == {}


def test_summary_counts_answers_and_tells_timeouts_apart():
    greedy, sampled, *passes = summary([*GREEDY, *DRAWN])
    assert greedy.split()[:3] == ["p/greedy", "n=1", "66.7%"]
    assert sampled.split()[:3] == ["p/sample", "n=1", "25.0%"]
    assert sampled.endswith("12 answers, 3 tokens each, 1 timeout")
    assert [line.split()[0] for line in passes] == ["p/pass@2", "p/pass@4"]


def test_disagreements_are_counted_between_right_and_not_right_alone():
    both = [
        record("a", "greedy", CORRECT, grades=(("boxed", CORRECT), ("math_verify", WRONG))),
        record("b", "greedy", WRONG, grades=(("boxed", WRONG), ("math_verify", TIMEOUT))),
    ]
    by_grader, count, first = disagreements(both)
    assert by_grader == "  by grader: boxed 50.0%, math_verify 0.0%"
    assert count == "  they disagree on 1 of 2 answers, the first:"
    assert "a (p/greedy): boxed correct, math_verify wrong" in first
    assert list(disagreements(GREEDY)) == []


def test_the_outcome_on_file_has_every_grade_and_a_table_per_tag(tmp_path):
    write_outcome(tmp_path, [*GREEDY, *DRAWN], seconds={"greedy": 1.5, "sample:4": 2.5})
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["seconds"] == {"greedy": 1.5, "sample:4": 2.5}
    counted = outcome["methods"]["p/sample, n = 1"]
    assert {grade: counted[grade] for grade in Grade} == {CORRECT: 3, WRONG: 8, Grade.UNPARSED: 0, TIMEOUT: 1}
    assert counted["n_tokens"] == 36
    assert outcome["pass_at_k"]["p/pass@4"]["estimate"] == pytest.approx(2 / 3)
    assert (tmp_path / "by_level.md").read_text().startswith("| level | problems |")
