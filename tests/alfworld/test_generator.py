"""New games: solvable, of every type, in the official format, and never from validation rooms."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from posttrain.alfworld.games import Game, Split, TaskType, read_folder, write_tree
from posttrain.alfworld.generator import generate_games
from posttrain.alfworld.goals import GOAL_TEXTS, goal_pddl
from posttrain.alfworld.processes import GameProcess, RemoteEnvironment
from posttrain.alfworld.room import read_room
from posttrain.alfworld.simulator import Simulator
from tests.alfworld.small_game import for_engine, small_game

GRAMMAR = '{"task": [{"rhs": "Your task is to: UNKNOWN GOAL."}]}'


def games_of(n_games: int, *, seed: int = 0) -> list[Game]:
    return list(generate_games([small_game(grammar=GRAMMAR)], n_games, seed=seed))


def normalised(pddl: str) -> str:
    return " ".join(pddl.replace("(", " ( ").replace(")", " ) ").split())


def test_task_types_come_in_turn_and_every_plan_wins_with_its_last_command() -> None:
    games = games_of(24)
    assert Counter(game.task_type for game in games) == dict.fromkeys(TaskType, 4)
    for game in games:
        simulator = Simulator(game)
        assert not simulator.reset().is_won
        assert [simulator.step(command).is_won for command in game.walkthrough][-2:] == [False, True]


def test_same_seed_gives_the_same_games_and_another_seed_others() -> None:
    assert games_of(12) == games_of(12)
    assert {game.pddl_problem for game in games_of(12)}.isdisjoint(game.pddl_problem for game in games_of(12, seed=1))


def test_objects_move_and_nothing_else_of_the_room_changes() -> None:
    before = read_room(small_game())
    rooms = [read_room(game) for game in games_of(12)]
    assert any(room.inside != before.inside for room in rooms)
    for room in rooms:
        same = ("name", "start", "location", "object_type", "can_contain", "is_openable", "is_pickupable")
        assert all(getattr(room, name) == getattr(before, name) for name in same)
        # Every object still lies in one receptacle, at that receptacle's place.
        assert len(room.inside) == len(before.inside)
        assert room.object_location == {(thing, room.location[receptacle]) for thing, receptacle in room.inside}


def test_validation_games_are_refused_as_bases() -> None:
    with pytest.raises(ValueError, match=r"valid_seen/.*expected games of the training split"):
        next(generate_games([replace(small_game(), game_id="valid_seen/small/trial_0")], 1, seed=0))


def test_task_type_that_no_room_allows_is_named() -> None:
    bare = small_game(grammar=GRAMMAR)
    bare = replace(bare, pddl_problem=bare.pddl_problem.replace("(toggleable DeskLamp_bar_1)", ""))
    with pytest.raises(ValueError, match="allows look_at_obj_in_light"):
        next(generate_games([bare], 1, seed=0, task_types=[TaskType.LOOK]))


def test_generated_games_are_read_back_from_their_folder(tmp_path) -> None:
    games = games_of(6)
    write_tree(games, tmp_path)
    assert read_folder(tmp_path) == sorted(games, key=lambda game: f"{game.game_id}/")


def test_goals_are_those_of_the_official_games(official_games: dict[Split, list[Game]]) -> None:
    for game in [game for games in official_games.values() for game in games]:
        target = game.lamp_target or game.receptacle_target
        ours = normalised(goal_pddl(game.task_type, game.object_target, target))
        official = normalised(game.pddl_problem[game.pddl_problem.index("(:goal") :]).removesuffix(" )")
        # The order of the conditions inside (and ...) differs for one type.
        assert sorted(ours.split()) == sorted(official.split()), game.game_id
        names = {"object": game.object_target.lower(), "target": target.lower()}
        assert game.goal in [text.format(**names) for text in GOAL_TEXTS[game.task_type]]


@pytest.mark.parametrize("number", range(len(TaskType)))
def test_engine_wins_a_generated_game_of_each_type_by_its_plan(engine_process: GameProcess, number: int) -> None:
    game = list(generate_games([for_engine(small_game())], len(TaskType), seed=1))[number]
    engine = RemoteEnvironment(engine_process, game)
    assert not engine.reset().is_won
    assert [engine.step(command).is_won for command in game.walkthrough][-1]
