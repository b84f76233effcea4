"""ALFWorld's games in the report: by type of task and in all, each split by itself."""

from __future__ import annotations

import json

import pytest

from posttrain.alfworld.games import TaskType
from posttrain.alfworld.play import GameRecord
from posttrain.evaluation.alfworld_baseline import append_game_record
from posttrain.evaluation.games_by_type import ALL, games_by_type
from posttrain.evaluation.report import ReportConfig, write_report

COOL, TWO = TaskType("pick_cool_then_place_in_recep"), TaskType("pick_two_obj_and_place")


def played(name: str, kind: TaskType, is_won: bool, *, agent: str = "oracle", seed: int = 0) -> GameRecord:
    return GameRecord(name, kind, agent, seed, 50, is_won, 5, 0, 1.0, None, ("look",) * 5)


GAMES = [
    played("valid_seen/a", COOL, True),
    played("valid_seen/b", COOL, False),
    played("valid_seen/c", TWO, True),
    played("valid_unseen/d", TWO, False),
]


def test_shares_are_those_of_the_types_games_and_the_splits_are_never_put_together():
    by_split = games_by_type(GAMES)
    assert list(by_split) == ["task type, valid_seen", "task type, valid_unseen"]
    cool, two, both = by_split["task type, valid_seen"]
    shares = [(v.value, v.n_problems, v.accuracy["oracle/valid_seen"].estimate) for v in (cool, two, both)]
    assert shares == [(COOL.value, 2, 0.5), (TWO.value, 1, 1.0), (ALL, 3, pytest.approx(2 / 3))]
    # Wilson, one of one: from 1 / (1 + z²) = 0.2065 to 1.
    assert two.accuracy["oracle/valid_seen"].low == pytest.approx(0.2065, abs=1e-4)
    assert [v.n_problems for v in by_split["task type, valid_unseen"]] == [1, 1]


def test_a_game_under_several_seeds_is_one_game():
    seeds = [played(f"valid_seen/{name}", TWO, name == "a", seed=seed) for name in "ab" for seed in range(20)]
    two, _ = games_by_type(seeds)["task type, valid_seen"]
    assert two.n_problems == 2
    at = two.accuracy["oracle/valid_seen"]
    assert (at.low, at.estimate, at.high) == (0.0, 0.5, 1.0)


def test_the_report_reads_the_games_of_all_files_in_a_folder_and_their_cards(tmp_path):
    for game in GAMES:
        append_game_record(tmp_path / "oracle.jsonl", game)
    append_game_record(tmp_path / "random.jsonl", played("valid_seen/a", COOL, False, agent="random"))
    (tmp_path / "oracle.jsonl.oracle.run.json").write_text(json.dumps({"games": "alfworld", "n_games": 4}))
    (tmp_path / "other.jsonl").write_text('{"step": 1}\n')
    page = write_report(ReportConfig(run=tmp_path)).read_text(encoding="utf-8")
    assert "<h3>By task type, valid_seen</h3>" in page and "<h3>By task type, valid_unseen</h3>" in page
    assert f"{COOL.value}: oracle/valid_seen 50.0 [9.5, 90.5], random/valid_seen 0.0 [0.0, 79.3]" in page
    assert "n_games" in page
    assert (tmp_path / "report/accuracy_by_task_type_valid_seen.png").stat().st_size > 5000
