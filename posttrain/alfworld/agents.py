"""Agents without a model: the floor and the ceiling that a policy's score is read against."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from posttrain.alfworld.environment import EngineEnvironment, Environment, Observation
from posttrain.alfworld.games import TASK_FILE, Game, task_data
from posttrain.alfworld.oracle import oracle_plan


class AgentName(StrEnum):
    WALKTHROUGH = "walkthrough"  # the commands stored with the game
    ORACLE = "oracle"  # ours: reads the game's first facts, see oracle.py
    HANDCODED = "handcoded"  # the alfworld package's expert, which looks around as a person would
    RANDOM = "random"  # a uniform draw of the admissible commands


class Agent(Protocol):
    def act(self, observation: Observation) -> str | None:
        """The next command, or None when the agent has nothing left to do."""
        ...


class ScriptedAgent:
    """Says the commands of a plan one by one, whatever happens."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = iter(commands)

    def act(self, observation: Observation) -> str | None:
        return next(self._commands, None)


class RandomAgent:
    """Draws uniformly from the admissible commands, which `help`, `inventory` and `look` are among."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def act(self, observation: Observation) -> str | None:
        return self._random.choice(observation.admissible)


class HandcodedAgent:
    """The expert that comes with alfworld, driven as its own wrapper `AlfredExpert` drives it.

    It reads the facts of the engine's state, so it needs the real engine. Where its choice is not admissible it looks
    around, as there. It draws from Python's global random numbers, which are seeded here; its errors (IndexError in
    some rooms, its own time-out after 200 commands) are raised and make a failed game.
    """

    MAX_COMMANDS = 200  # AlfredExpert's

    def __init__(self, game: Game, environment: EngineEnvironment, seed: str) -> None:
        from alfworld.agents.expert import HandCodedTWAgent  # pyright: ignore[reportMissingImports] - an extra

        random.seed(seed)
        self._environment = environment
        self._expert = HandCodedTWAgent(max_steps=self.MAX_COMMANDS)
        self._last: str | None = None
        with tempfile.TemporaryDirectory() as folder:  # it takes the task from the file beside the game
            (Path(folder) / TASK_FILE).write_text(json.dumps(task_data(game)), encoding="utf-8")
            self._expert.reset(str(Path(folder) / "game.tw-pddl"))

    def act(self, observation: Observation) -> str | None:
        chosen = "look"
        if self._last is None:
            self._expert.observe(observation.text)
        else:
            wanted = self._expert.act(self._environment.state, 0, observation.is_won, self._last)
            chosen = wanted if wanted in observation.admissible else chosen
        self._last = chosen
        return chosen


def make_agent(name: AgentName, game: Game, environment: Environment, *, seed: int) -> Agent:
    """An agent for one game; random ones draw from a stream of their own, set by the seed and the game's id."""
    stream = f"{seed}/{game.game_id}"

    def handcoded() -> Agent:
        if not isinstance(environment, EngineEnvironment):
            raise TypeError("the hand-coded agent reads the engine's facts: play it in an EngineEnvironment")
        return HandcodedAgent(game, environment, stream)

    makers: dict[AgentName, Callable[[], Agent]] = {
        AgentName.WALKTHROUGH: lambda: ScriptedAgent(game.walkthrough),
        AgentName.ORACLE: lambda: ScriptedAgent(oracle_plan(game)),
        AgentName.HANDCODED: handcoded,
        AgentName.RANDOM: lambda: RandomAgent(stream),
    }
    return makers[name]()
