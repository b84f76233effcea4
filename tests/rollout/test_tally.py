"""Counts over collected answers."""

from collections import Counter

from posttrain.rollout.tally import Tally
from posttrain.schema import Grade


def test_timeouts_are_counted_apart_and_shown_where_there_are_any():
    tally = Tally(n_by_grade=Counter({Grade.CORRECT: 3, Grade.WRONG: 1}))
    assert tally.progress() == "accuracy 75.0 %, unparsed 0.0 %"
    tally.n_by_grade[Grade.TIMEOUT] = 1
    assert tally.progress() == "accuracy 60.0 %, unparsed 0.0 %, timeout 20.0 %"
    assert tally.to_json()["n_timeout"] == 1
    assert Tally.from_json(tally.to_json()) == tally


def test_summary_from_before_grading_could_time_out_is_read():
    counts = Tally(n_by_grade=Counter({Grade.CORRECT: 3})).to_json()
    del counts["n_timeout"]
    assert Tally.from_json(counts).n_by_grade[Grade.TIMEOUT] == 0
