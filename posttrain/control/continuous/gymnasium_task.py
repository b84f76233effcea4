"""Tasks of gymnasium with continuous actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.control.continuous.environment import Step

INSTALL = "gymnasium is needed for this task: pip install 'posttrain[control]'"


class GymnasiumTask:
    """A registered gymnasium environment, without its TimeLimit, or any environment that is made already."""

    def __init__(self, environment: Any, *, n_steps: int) -> None:
        """Raises ValueError, with the fix, for actions that are discrete or have infinite bounds.

        Raises ImportError without gymnasium.
        """
        _require_box(environment)
        space = environment.action_space
        self._environment, self.n_steps = environment, n_steps
        self._low = space.low.astype(np.float64).ravel()
        self._span = space.high.astype(np.float64).ravel() - self._low
        self._shape = space.shape
        self.n_actions = self._low.size
        self.n_observations = int(np.prod(environment.observation_space.shape))

    @classmethod
    def make(cls, task: str) -> GymnasiumTask:
        """The environment registered under this id. Raises ValueError when it is registered without a time limit."""
        gymnasium = _gymnasium()
        n_steps = gymnasium.spec(task).max_episode_steps
        if n_steps is None:
            raise ValueError(
                f"{task} is registered without max_episode_steps, needed to end its episodes: register it"
            )
        return cls(gymnasium.make(task, max_episode_steps=-1), n_steps=n_steps)

    def reset(self, seed: int) -> NDArray[np.float32]:
        observation, _ = self._environment.reset(seed=seed)
        return np.ravel(observation).astype(np.float32)

    def step(self, action: NDArray[np.float32]) -> Step:
        played = self._low + (action.astype(np.float64) + 1) / 2 * self._span
        observation, reward, is_terminal, _, _ = self._environment.step(
            played.reshape(self._shape).astype(self._environment.action_space.dtype)
        )
        return Step(np.ravel(observation).astype(np.float32), float(reward), bool(is_terminal))


def _require_box(environment: Any) -> None:
    space = environment.action_space
    if not isinstance(space, _gymnasium().spaces.Box):
        raise ValueError(
            f"{environment} has actions {space}, needed a Box: DDPG and TD3 choose real numbers; for discrete actions "
            "take a task with a continuous form, such as gymnasium.make(id, continuous=True) where it has one"
        )
    if not np.isfinite([space.low, space.high]).all():
        raise ValueError(
            f"{environment} has actions between {space.low.min()} and {space.high.max()}, needed finite bounds, which "
            "tanh is scaled to: wrap it in gymnasium.wrappers.RescaleAction or ClipAction with bounds of your own"
        )
    if environment.observation_space.shape is None:
        raise ValueError(
            f"{environment} observes {environment.observation_space}, needed a Box: wrap it in "
            "gymnasium.wrappers.FlattenObservation"
        )


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return gymnasium
