"""Tasks of gymnasium with continuous or with discrete actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.control.continuous.environment import ActionKind, Step

INSTALL = "is needed for this task: pip install 'posttrain[control]'"


class GymnasiumTask:
    """A registered gymnasium environment, without its TimeLimit, or any environment that is made already."""

    def __init__(self, environment: Any, *, n_steps: int) -> None:
        """Raises ValueError, with the fix, for actions that are neither a bounded Box nor Discrete.

        Raises ImportError without gymnasium.
        """
        if environment.observation_space.shape is None:
            raise ValueError(
                f"{environment} observes {environment.observation_space}, needed a Box: wrap it in "
                "gymnasium.wrappers.FlattenObservation"
            )
        self._environment, self.n_steps = environment, n_steps
        self._actions = _actions(environment)
        self.action_kind, self.n_actions = self._actions.kind, self._actions.n
        self.n_observations = int(np.prod(environment.observation_space.shape))

    @classmethod
    def make(cls, task: str) -> GymnasiumTask:
        """The environment registered under this id.

        Raises ValueError when it is registered without a time limit, ImportError without a package that it needs.
        """
        gymnasium = _gymnasium()
        n_steps = gymnasium.spec(task).max_episode_steps
        if n_steps is None:
            raise ValueError(
                f"{task} is registered without max_episode_steps, needed to end its episodes: register it"
            )
        try:
            environment = gymnasium.make(task, max_episode_steps=-1)
        except gymnasium.error.DependencyNotInstalled as error:
            raise ImportError(f"the simulator of {task} {INSTALL}; gymnasium says: {error}") from error
        return cls(environment, n_steps=n_steps)

    def reset(self, seed: int) -> NDArray[np.float32]:
        observation, _ = self._environment.reset(seed=seed)
        return np.ravel(observation).astype(np.float32)

    def step(self, action: NDArray[np.float32]) -> Step:
        observation, reward, is_terminal, _, _ = self._environment.step(self._actions.played(action))
        return Step(np.ravel(observation).astype(np.float32), float(reward), bool(is_terminal))


class _Continuous:
    """Vectors in [-1, 1], scaled to the bounds of a Box."""

    kind = ActionKind.CONTINUOUS

    def __init__(self, space: Any) -> None:
        self._low = space.low.astype(np.float64).ravel()
        self._span = space.high.astype(np.float64).ravel() - self._low
        self._shape, self._dtype = space.shape, space.dtype
        self.n = self._low.size

    def played(self, action: NDArray[np.float32]) -> NDArray[Any]:
        scaled = self._low + (action.astype(np.float64) + 1) / 2 * self._span
        return scaled.reshape(self._shape).astype(self._dtype)


class _Discrete:
    """Vectors with an entry for each choice, of which the largest is played."""

    kind = ActionKind.DISCRETE

    def __init__(self, space: Any) -> None:
        self._start = int(space.start)
        self.n = int(space.n)

    def played(self, action: NDArray[np.float32]) -> int:
        return self._start + int(action.argmax())


def _actions(environment: Any) -> _Continuous | _Discrete:
    space, spaces = environment.action_space, _gymnasium().spaces
    if isinstance(space, spaces.Discrete):
        return _Discrete(space)
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"{environment} has actions {space}, needed a Box or a Discrete: wrap it in "
            "gymnasium.wrappers.TransformAction with one number for each combination of choices"
        )
    if not np.isfinite([space.low, space.high]).all():
        raise ValueError(
            f"{environment} has actions between {space.low.min()} and {space.high.max()}, needed finite bounds, which "
            "tanh is scaled to: wrap it in gymnasium.wrappers.RescaleAction or ClipAction with bounds of your own"
        )
    return _Continuous(space)


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(f"gymnasium {INSTALL}") from error
    return gymnasium
