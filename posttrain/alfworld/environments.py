"""Environments for games that are played side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal, Self

from posttrain.alfworld.environment import Environment, require_engine
from posttrain.alfworld.games import Game
from posttrain.alfworld.processes import GameProcess, RemoteEnvironment
from posttrain.alfworld.simulator import Simulator

EnvironmentName = Literal["simulator", "engine"]


class Environments:
    """Gives every game of a chunk its own environment; the engines' processes go on to the next chunk.

    Starting a process costs about a second, as much as a whole game. Raises ImportError where the engine is asked for
    and not installed.
    """

    def __init__(self, name: EnvironmentName, *, seconds_per_game: float) -> None:
        if name == "engine":
            require_engine()
        self._name = name
        self._seconds_per_game = seconds_per_game
        self._processes: list[GameProcess] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, games: Sequence[Game]) -> list[Environment]:
        """An environment for each game; those of an earlier call are over."""
        if self._name == "simulator":
            return [Simulator(game) for game in games]
        while len(self._processes) < len(games):
            process = GameProcess(seconds_per_game=self._seconds_per_game)
            self._processes.append(self._stack.enter_context(process))
        return [RemoteEnvironment(process, game) for process, game in zip(self._processes, games, strict=False)]
