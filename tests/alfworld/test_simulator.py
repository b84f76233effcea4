"""The simulator: its rules by hand, and its equality with the real engine."""

from __future__ import annotations

import random

import pytest

from posttrain.alfworld.environment import Observation
from posttrain.alfworld.games import Game, Split, TaskType
from posttrain.alfworld.oracle import oracle_plan
from posttrain.alfworld.processes import GameProcess, RemoteEnvironment
from posttrain.alfworld.simulator import Simulator
from tests.alfworld.small_game import for_engine, small_game

CHANGING = ("take", "move", "clean", "heat", "cool", "slice", "use", "open")


def observations(simulator: Simulator, *commands: str) -> list[Observation]:
    simulator.reset()
    return [simulator.step(command) for command in commands]


def test_first_text_lists_the_receptacles_and_the_task(kitchen: Game) -> None:
    assert Simulator(kitchen).reset().text == (
        "-= Welcome to TextWorld, ALFRED! =-\n\n"
        "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a countertop 1, "
        "a fridge 1, a microwave 1, a shelf 1, a sidetable 1, and a sinkbasin 1.\n\n"
        "Your task is to: heat some apple and put it in fridge."
    )


def test_entities_of_a_kind_are_numbered_downwards_in_the_order_of_their_ids(kitchen: Game) -> None:
    # Apple_bar_1 comes before Apple_bar_2, so it is apple 2.
    (seen,) = observations(Simulator(kitchen), "go to countertop 1")
    assert seen.text == "You arrive at countertop 1. On the countertop 1, you see a apple 2, a bowl 1, and a knife 1."


def test_goal_holds_only_after_the_whole_plan(kitchen: Game) -> None:
    plan = [
        "go to countertop 1",
        "take apple 2 from countertop 1",
        "go to microwave 1",
        "heat apple 2 with microwave 1",
    ]
    plan += ["go to fridge 1", "open fridge 1", "move apple 2 to fridge 1"]
    assert [seen.is_won for seen in observations(Simulator(kitchen), *plan)] == [False] * 6 + [True]


def test_cooling_undoes_heating_and_a_cool_apple_is_not_hot(kitchen: Game) -> None:
    commands = ("go to countertop 1", "take apple 2 from countertop 1", "go to microwave 1")
    commands += ("heat apple 2 with microwave 1", "go to fridge 1", "cool apple 2 with fridge 1", "examine apple 2")
    *_, cooled, examined = observations(Simulator(kitchen), *commands)
    assert cooled.text == "You cool the apple 2 using the fridge 1."
    assert examined.text == "This is a cold apple 2."
    simulator = Simulator(kitchen)
    *_, put = observations(simulator, *commands, "open fridge 1", "move apple 2 to fridge 1")
    assert not put.is_won


def test_command_that_is_not_admissible_changes_nothing(kitchen: Game) -> None:
    before, after = observations(Simulator(kitchen), "look", "take apple 2 from countertop 1")
    assert after.text == "Nothing happens."
    assert after.admissible == before.admissible


def test_closed_receptacle_shows_and_gives_nothing(kitchen: Game) -> None:
    closed, opened = observations(Simulator(kitchen), "go to cabinet 1", "open cabinet 1")
    assert closed.text == "You arrive at cabinet 1. The cabinet 1 is closed."
    assert "take apple 1 from cabinet 1" not in closed.admissible
    assert opened.text == "You open the cabinet 1. The cabinet 1 is open. In it, you see a apple 1."
    assert "take apple 1 from cabinet 1" in opened.admissible


def test_reset_forgets_the_game_before(kitchen: Game) -> None:
    simulator = Simulator(kitchen)
    first = simulator.reset()
    for command in oracle_plan(kitchen):
        simulator.step(command)
    assert simulator.is_won()
    assert simulator.reset() == first


@pytest.mark.parametrize(
    ("task_type", "thing", "target"), [(TaskType.LOOK, "Mug", "DeskLamp"), (TaskType.PICK_TWO, "Mug", "Shelf")]
)
def test_other_goals_hold_after_the_oracles_last_command_and_not_before(task_type, thing, target) -> None:
    game = small_game(task_type, thing, target)
    seen = observations(Simulator(game), *oracle_plan(game))
    assert [observation.is_won for observation in seen] == [False] * (len(seen) - 1) + [True]


def test_all_official_walkthroughs_are_admissible_and_win(official_games: dict[Split, list[Game]]) -> None:
    for game in [game for games in official_games.values() for game in games]:
        simulator = Simulator(game)
        seen = simulator.reset()
        assert not seen.is_won
        for command in game.walkthrough:
            assert command in seen.admissible, (game.game_id, command)
            seen = simulator.step(command)
        assert seen.is_won, game.game_id


def busy_command(rng: random.Random, seen: Observation) -> str:
    """An admissible command, twice as often one that changes something; now and then one that is not admissible."""
    if rng.random() < 0.03:
        return "put apple 1 in/on fridge 1"
    changing = [command for command in seen.admissible if command.split()[0] in CHANGING]
    return rng.choice(changing if changing and rng.random() < 0.5 else list(seen.admissible))


def assert_equal_play(process: GameProcess, game: Game, *, n_random: int, seed: int) -> None:
    """The oracle's plan, then random play from the state that it has reached, then random play from the start."""
    engine, simulator = RemoteEnvironment(process, game), Simulator(game)
    rng = random.Random(f"{seed}/{game.game_id}")
    for plan in (oracle_plan(game), []):
        seen = engine.reset()
        assert simulator.reset() == seen
        for step in range(len(plan) + n_random):
            command = plan[step] if step < len(plan) else busy_command(rng, seen)
            seen = engine.step(command)
            assert simulator.step(command) == seen, (game.game_id, step, command)
            assert step != len(plan) - 1 or seen.is_won


@pytest.mark.parametrize(
    ("task_type", "thing", "target"), [(TaskType.HEAT, "Apple", "Fridge"), (TaskType.LOOK, "Mug", "DeskLamp")]
)
def test_small_game_is_played_equally_by_the_engine(engine_process: GameProcess, task_type, thing, target) -> None:
    goal = "test the engine"
    assert_equal_play(engine_process, for_engine(small_game(task_type, thing, target, goal=goal)), n_random=60, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("task_type", TaskType)
def test_official_games_are_played_equally_by_the_engine(official_games, engine_process, task_type) -> None:
    games = [game for game in official_games[Split.VALID_UNSEEN] if game.task_type is task_type]
    assert_equal_play(engine_process, games[7], n_random=30, seed=0)
