"""Playing one game with one agent, and what is kept of it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.alfworld.agents import Agent
from posttrain.alfworld.environment import Environment
from posttrain.alfworld.games import Game, TaskType


@dataclass(frozen=True, slots=True)
class GameRecord:
    """One game's outcome; a results file of ALFWorld is JSON lines of these."""

    game_id: str
    task_type: TaskType
    agent: str
    seed: int
    max_steps: int
    is_won: bool  # the engine's `won` after a command; never its score at the step limit
    n_steps: int  # commands given, those that did nothing included
    n_inadmissible: int  # commands that were not admissible, so that nothing happened
    seconds: float | None  # wall time from the reset on, loading before it not counted; None for games side by side
    failure: str | None  # why the game ended by itself: the engine hung, died, or the agent raised; else None
    commands: tuple[str, ...]
    n_sampled_tokens: int | None = None  # by a policy, replies that were not chosen included
    n_scored_tokens: int | None = None  # that a value model was given to choose by

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(row: dict[str, Any]) -> GameRecord:
        return GameRecord(**{**row, "task_type": TaskType(row["task_type"]), "commands": tuple(row["commands"])})


def agent_name(policy: str, protocol: str, *, n_candidates: int) -> str:
    """How records call a policy under a protocol: "sft/command", or with 4 candidates "sft/command/best_of_4"."""
    return f"{policy}/{protocol}" + (f"/best_of_{n_candidates}" if n_candidates > 1 else "")


def play(game: Game, environment: Environment, agent: Agent, *, name: str, seed: int, max_steps: int) -> GameRecord:
    """Play until the goal holds, the agent stops, or `max_steps` commands were given.

    An error of the agent ends the game and is its failure; errors of the environment pass through.
    """
    started = time.perf_counter()
    observation = environment.reset()
    commands: list[str] = []
    n_inadmissible, failure = 0, None
    while not observation.is_won and len(commands) < max_steps:
        try:
            command = agent.act(observation)
        except Exception as error:  # any error of foreign code, such as the hand-coded expert's IndexError
            failure = described(error)
            break
        if command is None:
            break
        n_inadmissible += command not in observation.admissible
        commands.append(command)
        observation = environment.step(command)
    return GameRecord(
        game_id=game.game_id,
        task_type=game.task_type,
        agent=name,
        seed=seed,
        max_steps=max_steps,
        is_won=observation.is_won,
        n_steps=len(commands),
        n_inadmissible=n_inadmissible,
        seconds=round(time.perf_counter() - started, 3),
        failure=failure,
        commands=tuple(commands),
    )


def described(error: Exception) -> str:
    """An error as records keep it: "IndexError: list index out of range"."""
    return f"{type(error).__name__}: {error}"
