"""The baseline command: its records, how it goes on, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.alfworld.agents import AgentName
from posttrain.alfworld.environment import require_engine
from posttrain.alfworld.games import Split, TaskType, write_tree
from posttrain.alfworld.play import GameRecord
from posttrain.evaluation.alfworld_baseline import (
    BaselineConfig,
    append_game_record,
    failures,
    read_game_records,
    run_baseline,
    success_table,
)
from tests.alfworld.small_game import for_engine, small_game


def record(
    number: int, *, is_won: bool, task_type: TaskType = TaskType.PICK, failure: str | None = None
) -> GameRecord:
    return GameRecord(
        game_id=f"valid_seen/task/trial_{number}",
        task_type=task_type,
        agent="oracle",
        seed=0,
        max_steps=50,
        is_won=is_won,
        n_steps=number,
        n_inadmissible=0,
        seconds=1.0,
        failure=failure,
        commands=("look",) * number,
    )


def test_table_counts_games_by_task_type_with_wilson_intervals() -> None:
    records = [record(i, is_won=i > 3) for i in range(1, 11)] + [record(11, is_won=False, task_type=TaskType.LOOK)]
    rows = {row[0]: row[1] for row in success_table(records).rows}
    # Wilson at 7 of 10, z = 1.96: centre (0.7 + 0.19207) / 1.38415 = 0.64449, half width 0.24722.
    assert rows["pick_and_place_simple"] == "7/10 = 70.0% [39.7%, 89.2%]"
    assert rows["look_at_obj_in_light"] == "0/1 = 0.0% [0.0%, 79.3%]"
    assert rows["pick_two_obj_and_place"] == "–"
    assert rows["all"].startswith("7/11 = 63.6%")
    assert rows["commands in a won game"] == "7.0"  # (4 + ... + 10) / 7


def test_records_are_read_back_and_a_torn_last_line_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "games.jsonl"
    for number in range(3):
        append_game_record(path, record(number, is_won=True))
    path.write_bytes(path.read_bytes()[:-20])
    assert read_game_records(path) == [record(0, is_won=True), record(1, is_won=True)]
    append_game_record(path, record(2, is_won=True))
    assert read_game_records(path) == [record(number, is_won=True) for number in range(3)]


def test_game_played_twice_or_a_line_of_another_kind_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "games.jsonl"
    for _ in range(2):
        append_game_record(path, record(1, is_won=True))
    with pytest.raises(ValueError, match=r"games.jsonl:2: oracle played valid_seen/task/trial_1 before"):
        read_game_records(path)
    path.write_text(json.dumps({"task_id": "t"}) + "\n")
    with pytest.raises(ValueError, match=r"games.jsonl:1: is no game record"):
        read_game_records(path)


def test_failed_games_are_listed_with_their_reason() -> None:
    found = list(failures([record(1, is_won=True), record(2, is_won=False, failure="killed: the engine hung")]))
    assert found == ["failed: oracle in valid_seen/task/trial_2: killed: the engine hung"]


def test_run_plays_only_the_games_that_are_not_on_file(tmp_path: Path, capsys) -> None:
    try:
        require_engine()
    except ImportError as error:
        pytest.skip(str(error))
    games = [for_engine(small_game(game_id=f"valid_seen/small/trial_{i}")) for i in range(3)]
    write_tree(games, tmp_path / "games")
    config = BaselineConfig(
        AgentName.ORACLE, tmp_path / "out.jsonl", split=(Split.VALID_SEEN,), folder=tmp_path / "games", limit=3
    )
    kept = GameRecord(**{**record(7, is_won=False).to_json(), "game_id": games[0].game_id})
    append_game_record(config.output, kept)
    run_baseline(config)
    records = {r.game_id: r for r in read_game_records(config.output)}
    assert records[games[0].game_id] == kept
    assert [records[game.game_id].is_won for game in games] == [False, True, True]
    assert "| all | 2/3 = 66.7%" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.jsonl.oracle.run.json").read_text())["n_games"] == 3
