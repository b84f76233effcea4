"""A task of this library as stable-baselines3 wants it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from posttrain.control.continuous.environment import Environment


class AsGymnasium(gymnasium.Env):
    """With the time limit that belongs to the task, told as truncation; rewards are scaled as our learner's are."""

    def __init__(self, task: Environment, *, reward_scale: float) -> None:
        self.task, self.reward_scale = task, reward_scale
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (task.n_observations,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (task.n_actions,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.n_played = 0
        return self.task.reset(int(self.np_random.integers(2**31))), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        observation, reward, is_terminal = self.task.step(action)
        self.n_played += 1
        return observation, self.reward_scale * reward, is_terminal, self.n_played == self.task.n_steps, {}
