"""The official splits, as they are read from either form."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.alfworld.games import Game, GamesError, Split, TaskType, read_folder, read_games, write_tree
from tests.alfworld.small_game import small_game

GRAMMAR = 'grammar :: """{"task": [{"rhs": "Your task is to: UNKNOWN GOAL."}]}"""'


def test_official_validation_splits_have_their_games_by_task_type(official_games: dict[Split, list[Game]]) -> None:
    counts = {split: Counter(game.task_type for game in games) for split, games in official_games.items()}
    order = (TaskType.PICK, TaskType.LOOK, TaskType.CLEAN, TaskType.HEAT, TaskType.COOL, TaskType.PICK_TWO)
    # The counts of the paper's table: 140 and 134 games.
    assert [counts[Split.VALID_SEEN][task_type] for task_type in order] == [35, 13, 27, 16, 25, 24]
    assert [counts[Split.VALID_UNSEEN][task_type] for task_type in order] == [24, 18, 31, 23, 21, 17]


def test_tree_that_is_written_is_read_back_equal(tmp_path: Path) -> None:
    games = [small_game(grammar=GRAMMAR, game_id=f"valid_seen/small/trial_{i}", domain="d") for i in range(2)]
    games[1] = replace(games[1], walkthrough=("look", "help"))
    write_tree(games, tmp_path)
    assert read_folder(tmp_path) == games
    assert read_games(Split.VALID_SEEN, folder=tmp_path, limit=1) == games[:1]


def test_split_with_games_missing_is_refused_with_both_counts(tmp_path: Path) -> None:
    write_tree([small_game(grammar=GRAMMAR, game_id="valid_seen/small/trial_0")], tmp_path)
    with pytest.raises(GamesError, match=r"valid_seen has 1 games, the official split 140"):
        read_games(Split.VALID_SEEN, folder=tmp_path)


def test_trials_that_are_unsolvable_or_slice_are_no_part_of_a_split(tmp_path: Path) -> None:
    kept, unsolvable = (small_game(grammar=GRAMMAR, game_id=f"train/small/trial_{i}") for i in range(2))
    sliced = small_game(grammar=GRAMMAR, game_id="train/pick-AppleSliced/trial_2")
    write_tree([kept, unsolvable, sliced], tmp_path)
    path = tmp_path / unsolvable.game_id / "game.tw-pddl"
    path.write_text(path.read_text().replace('"solvable": true', '"solvable": false'))
    assert [game.game_id for game in read_games(Split.TRAIN, folder=tmp_path, limit=9)] == [kept.game_id]


def test_folder_without_games_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(GamesError, match="alfworld-download"):
        read_games(Split.TRAIN, folder=tmp_path)


def test_folder_is_found_by_the_variables_of_the_package_and_of_the_library(tmp_path: Path, monkeypatch) -> None:
    game = small_game(grammar=GRAMMAR)
    write_tree([game], tmp_path / "json_2.1.1")
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    assert read_games(Split.TRAIN, limit=1) == [game]
    monkeypatch.delenv("ALFWORLD_DATA")
    (tmp_path / "json_2.1.1").rename(tmp_path / "alfworld")
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path))
    assert read_games(Split.TRAIN, limit=1) == [game]
