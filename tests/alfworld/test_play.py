"""How a game ends, and what its record says."""

from __future__ import annotations

import pytest

from posttrain.alfworld.agents import AgentName, ScriptedAgent, make_agent
from posttrain.alfworld.environment import Observation
from posttrain.alfworld.games import Game
from posttrain.alfworld.play import GameRecord, play
from posttrain.alfworld.simulator import Simulator


class FailingAgent:
    """Looks once, then reaches into an empty list, as the hand-coded expert does in some rooms."""

    n_calls = 0

    def act(self, observation: Observation) -> str:
        self.n_calls += 1
        return "look" if self.n_calls == 1 else [][0]


def played(game: Game, agent, *, max_steps: int = 50) -> GameRecord:
    return play(game, Simulator(game), agent, name="test", seed=0, max_steps=max_steps)


def test_game_ends_with_the_command_that_wins_it(kitchen: Game) -> None:
    agent = make_agent(AgentName.ORACLE, kitchen, Simulator(kitchen), seed=0)
    record = played(kitchen, agent)
    assert (record.is_won, record.n_steps, record.failure) == (True, 7, None)


def test_game_is_lost_at_the_step_limit_one_command_short_of_the_goal(kitchen: Game) -> None:
    agent = make_agent(AgentName.ORACLE, kitchen, Simulator(kitchen), seed=0)
    record = played(kitchen, agent, max_steps=6)
    assert (record.is_won, record.n_steps) == (False, 6)


def test_agents_error_is_a_failed_game_that_keeps_its_commands(kitchen: Game) -> None:
    record = played(kitchen, FailingAgent())
    assert (record.is_won, record.commands) == (False, ("look",))
    assert record.failure == "IndexError: list index out of range"


def test_commands_that_do_nothing_are_counted(kitchen: Game) -> None:
    record = played(kitchen, ScriptedAgent(["look", "go to bed 1", "put apple 1 in fridge 1"]))
    assert (record.n_steps, record.n_inadmissible) == (3, 2)


def test_random_agent_repeats_itself_for_a_seed_and_gives_admissible_commands_only(kitchen: Game) -> None:
    records = [
        played(kitchen, make_agent(AgentName.RANDOM, kitchen, Simulator(kitchen), seed=seed)) for seed in (0, 0, 1)
    ]
    assert records[0].commands == records[1].commands != records[2].commands
    assert all(record.n_inadmissible == 0 for record in records)


def test_handcoded_agent_needs_the_engine(kitchen: Game) -> None:
    with pytest.raises(TypeError, match="EngineEnvironment"):
        make_agent(AgentName.HANDCODED, kitchen, Simulator(kitchen), seed=0)


def test_record_survives_json(kitchen: Game) -> None:
    record = played(kitchen, ScriptedAgent(["look"]))
    assert GameRecord.from_json(record.to_json()) == record
