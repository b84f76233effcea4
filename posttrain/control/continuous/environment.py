"""What an agent plays: one small interface of vectors, and episodes that can be put back in place."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class ActionKind(StrEnum):
    CONTINUOUS = "continuous"  # any vector in [-1, 1], whatever the task's bounds are
    DISCRETE = "discrete"  # an entry for each choice, of which the largest is played; agents give one-hot ones


class Step(NamedTuple):
    """What an action led to."""

    observation: NDArray[np.float32]  # [n_observations]
    reward: float
    is_terminal: bool  # the task is over and nothing follows; a time limit is none


class Environment(Protocol):
    """A task without a time limit of its own, whose actions are vectors of one kind."""

    action_kind: ActionKind
    n_observations: int
    n_actions: int  # entries of an action
    n_steps: int  # the time limit that belongs to the task, in steps

    def reset(self, seed: int) -> NDArray[np.float32]:
        """Begin an episode that depends on `seed` alone."""
        ...

    def step(self, action: NDArray[np.float32]) -> Step:
        """Play one action, [n_actions] of the task's kind."""
        ...


class Repeated:
    """An environment whose actions are each played `n_repeats` times; rewards are summed, time limits shortened."""

    def __init__(self, environment: Environment, *, n_repeats: int) -> None:
        if n_repeats < 1 or environment.n_steps % n_repeats:
            raise ValueError(
                f"{n_repeats} repeats of each action: needed a divisor of the time limit, {environment.n_steps} steps"
            )
        self.environment, self.n_repeats = environment, n_repeats
        self.action_kind = environment.action_kind
        self.n_observations, self.n_actions = environment.n_observations, environment.n_actions
        self.n_steps = environment.n_steps // n_repeats

    def reset(self, seed: int) -> NDArray[np.float32]:
        return self.environment.reset(seed)

    def step(self, action: NDArray[np.float32]) -> Step:
        total = 0.0
        for _ in range(self.n_repeats):
            observation, reward, is_terminal = self.environment.step(action)
            total += reward
            if is_terminal:
                break
        return Step(observation, total, is_terminal)


class Episode:
    """An environment played one episode after another, each from a seed of its own.

    A simulator's inner state is never read. It is restored by its history: the seed of the last reset, and the actions
    played since. That is exact for every deterministic simulator, and costs at most one episode.
    """

    def __init__(self, environment: Environment, *, seed: int, n_steps: int) -> None:
        if n_steps < 1:
            raise ValueError(f"n_steps is {n_steps}, an episode needs 1 or more")
        self.environment, self.seed, self.n_steps = environment, seed, n_steps
        self.n_begun = 0
        self._begin()

    def step(self, action: NDArray[np.float32]) -> tuple[Step, bool]:
        """Play one action. Returns what it led to, and whether the episode is over, at its end or its time limit.

        `observation` is then already that of the next episode.
        """
        self.actions.append(np.array(action, dtype=np.float32))
        outcome = self.environment.step(self.actions[-1])
        self.observation = outcome.observation
        is_over = outcome.is_terminal or len(self.actions) == self.n_steps
        if is_over:
            self._begin()
        return outcome, is_over

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        n_actions = self.environment.n_actions
        played = np.array(self.actions, dtype=np.float32).reshape(-1, n_actions)
        return {"n_begun": self.n_begun, "actions": torch.from_numpy(played)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state` was called, by replaying the episode that was being played."""
        self.n_begun = state["n_begun"] - 1
        self._begin()
        for action in state["actions"].numpy():
            self.step(action)

    def _begin(self) -> None:
        self.n_begun += 1
        self.actions: list[NDArray[np.float32]] = []
        self.observation = self.environment.reset(reset_seed(self.seed, self.n_begun))


def reset_seed(*parts: int) -> int:
    """A seed of 32 bits that depends on all parts; neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
