"""Accuracy by tag: numbers counted by hand, the report's part, and looks that tell methods apart."""

from __future__ import annotations

import itertools

import pytest

from posttrain.evaluation.by_tag import accuracy_by_tag, tag_table
from posttrain.evaluation.figures import LOOK_OF_DECODING, look_of_decoding
from posttrain.evaluation.records import append_records, group_records
from posttrain.evaluation.report import ReportConfig, write_report
from posttrain.schema import AnswerRecord, FinishReason, Grade

LEVELS = {"a": "1", "b": "1", "c": "2"}


def record(task: str, method: str, is_correct: bool, *, budget: int = 1, seed: int = 0) -> AnswerRecord:
    grade = Grade.CORRECT if is_correct else Grade.WRONG
    tags = (("level", LEVELS[task]),)
    return AnswerRecord(task, method, seed, budget, "text", grade, FinishReason.STOP, 3, None, tags=tags)


GREEDY = [record("a", "p/greedy", True), record("b", "p/greedy", False), record("c", "p/greedy", True)]
VOTES = [record("a", "p/majority", True, budget=n) for n in (4, 16)]
SAMPLES = [record(task, "p/sample", False) for task in "aabbcc"]


def test_each_value_has_the_accuracy_of_its_problems_and_single_samples_are_left_out():
    ((tag, values),) = accuracy_by_tag(group_records([*VOTES, *SAMPLES, *GREEDY])).items()
    assert tag == "level"
    assert [(v.value, v.n_problems) for v in values] == [("1", 2), ("2", 1)]
    assert list(values[0].accuracy) == ["p/greedy", "p/majority, n = 4", "p/majority, n = 16"]
    assert [v.accuracy["p/greedy"].estimate for v in values] == [0.5, 1.0]
    # Wilson, one of two: (1/2 + z²/4 ± z sqrt(1/8 + z²/16)) / (1 + z²/2), with z = 1.96 that is 0.5 ± 0.405.
    interval = values[0].accuracy["p/greedy"]
    assert (interval.low, interval.high) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    table = tag_table(tag, values)
    assert table.header[:3] == ("level", "problems", "p/greedy, %")
    assert table.rows[1] == ("2", "1", "100.0 [20.7, 100.0]", "–", "–")  # 1 / (1 + z²) = 0.207


def test_answers_to_one_problem_under_several_seeds_are_not_taken_for_several_problems():
    twice = [record(task, "p/greedy", task == "a", seed=seed) for task in "ab" for seed in range(50)]
    (value,) = accuracy_by_tag(group_records(twice))["level"]
    at = value.accuracy["p/greedy"]
    assert (value.n_problems, at.estimate) == (2, 0.5)
    assert (at.low, at.high) == (0.0, 1.0)  # two problems; Wilson over the 100 answers would say 0.40 to 0.60


def test_the_report_has_a_table_and_a_picture_for_each_tag(tmp_path):
    append_records(tmp_path / "answers.jsonl", [*GREEDY, *VOTES, *SAMPLES])
    card = tmp_path / "evaluations/p/run.json"
    card.parent.mkdir(parents=True)
    card.write_text('{"command": "posttrain eval run math"}')
    page = write_report(ReportConfig(run=tmp_path)).read_text(encoding="utf-8")
    assert "<h3>By level</h3>" in page and "posttrain eval run math" in page
    assert "<td>100.0&nbsp;[20.7,&nbsp;100.0]</td>" in page
    assert "Accuracy in per cent by level: 1: p/greedy 50.0 [9.5, 90.5], p/majority, n = 16 " in page
    assert "n = 4, %" not in page  # at its largest budget alone
    assert (tmp_path / "report/accuracy_by_level.png").stat().st_size > 5000
    assert "| level | problems | p/greedy, % |" in (tmp_path / "report/results.md").read_text(encoding="utf-8")


def test_no_two_decodings_of_a_policy_share_their_marker_or_their_line():
    decodings = [*LOOK_OF_DECODING, "mcts", "dvts"]
    looks = [look_of_decoding(decoding, decodings) for decoding in decodings]
    assert len({marker for marker, _ in looks}) == len(decodings)
    known = looks[: len(LOOK_OF_DECODING)]
    assert all(a != b for (_, a), (_, b) in itertools.combinations(known, 2))
