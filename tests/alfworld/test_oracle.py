"""The rule-based expert."""

from __future__ import annotations

import pytest

from posttrain.alfworld.games import Game, Split, TaskType
from posttrain.alfworld.oracle import NoPlanError, oracle_plan
from posttrain.alfworld.simulator import Simulator
from tests.alfworld.small_game import small_game


def test_plan_opens_what_is_closed_and_goes_nowhere_twice_in_a_row() -> None:
    # The mug on the shelf is mug 2 (Mug_bar_1); the side table shares the shelf's place, so no step leads there.
    assert oracle_plan(small_game(TaskType.PICK, "Mug", "SideTable"))[:3] == [
        "go to shelf 1",
        "take mug 2 from shelf 1",
        "move mug 2 to sidetable 1",
    ]
    assert oracle_plan(small_game(TaskType.COOL, "Egg", "Cabinet")) == [
        "go to fridge 1",
        "open fridge 1",
        "take egg 1 from fridge 1",
        "cool egg 1 with fridge 1",
        "go to cabinet 1",
        "open cabinet 1",
        "move egg 1 to cabinet 1",
    ]


def test_two_objects_are_brought_to_the_receptacle_that_holds_one_already() -> None:
    plan = oracle_plan(small_game(TaskType.PICK_TWO, "Mug", "Shelf"))
    assert plan == ["go to sinkbasin 1", "take mug 1 from sinkbasin 1", "go to shelf 1", "move mug 1 to shelf 1"]


@pytest.mark.parametrize(
    ("task_type", "thing", "target", "why"),
    [
        (TaskType.HEAT, "Knife", "Fridge", "no Knife that can be taken"),  # a knife cannot be heated
        (TaskType.PICK, "Apple", "Bed", "no Bed that may hold Apple"),
        (TaskType.PICK_TWO, "Egg", "Shelf", "1 Egg to take, needs 2"),
        (TaskType.LOOK, "Mug", "FloorLamp", "no FloorLamp that can be switched"),
    ],
)
def test_game_that_the_room_does_not_allow_is_refused_with_what_is_missing(task_type, thing, target, why) -> None:
    with pytest.raises(NoPlanError, match=why):
        oracle_plan(small_game(task_type, thing, target))


def test_oracle_wins_every_official_game_with_admissible_commands(official_games: dict[Split, list[Game]]) -> None:
    for game in [game for games in official_games.values() for game in games]:
        simulator = Simulator(game)
        seen = simulator.reset()
        for command in oracle_plan(game):
            assert command in seen.admissible, (game.game_id, command)
            seen = simulator.step(command)
        assert seen.is_won, game.game_id
