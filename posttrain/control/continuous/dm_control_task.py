"""Tasks of the DeepMind control suite, on MuJoCo."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.control.continuous.environment import ActionKind, Step

EPISODE_STEPS = 1000  # of every task of the suite's benchmark; rewards are in [0, 1]
INSTALL = "dm_control is needed for this task: pip install 'posttrain[control]'"


class DmControlTask:
    """One task of the suite; the observation is the concatenation of the suite's parts, in its order."""

    action_kind = ActionKind.CONTINUOUS
    n_steps = EPISODE_STEPS

    def __init__(self, domain: str, task: str) -> None:
        """Raises ImportError without dm_control, ValueError for a task that the suite does not have."""
        suite = _suite()
        if (domain, task) not in suite.ALL_TASKS:
            near = sorted(f"{d}-{t}" for d, t in suite.ALL_TASKS if d == domain) or sorted(
                {d for d, _ in suite.ALL_TASKS}
            )
            raise ValueError(f"the control suite has no {domain}-{task}; it has {', '.join(near)}")
        self._environment: Any = suite.load(domain, task, task_kwargs={"random": 0, "time_limit": float("inf")})
        bounds = self._environment.action_spec()
        self._low, self._span = bounds.minimum, bounds.maximum - bounds.minimum
        self.n_actions = int(bounds.shape[0])
        self.n_observations = len(self.reset(0))

    def reset(self, seed: int) -> NDArray[np.float32]:
        self._environment.task.random.seed(seed)
        return _flat(self._environment.reset().observation)

    def step(self, action: NDArray[np.float32]) -> Step:
        taken = self._environment.step(self._low + (action.astype(np.float64) + 1) / 2 * self._span)
        # The suite marks the end of a task by discount 0. Its time limits, with discount 1, are switched off.
        return Step(_flat(taken.observation), float(taken.reward), taken.discount == 0.0)


def _flat(observation: dict[str, Any]) -> NDArray[np.float32]:
    return np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)


def _suite() -> Any:
    os.environ.setdefault("MUJOCO_GL", "disable")  # nothing is drawn, and without a display its default fails
    try:
        from dm_control import suite
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return suite
