"""One copy of a world as a gymnasium environment. Needs gymnasium, which nothing else here does."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete, MultiBinary

from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.world import World, step


class WorldEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Observations are [n_bits] int8 of 0 and 1. `reset(seed=...)` draws the same world again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.observation_space = MultiBinary(world.n_bits)
        self.action_space = Discrete(world.n_actions)
        self._streams: Streams | None = None
        self._observation = torch.zeros(1, 1, world.n_bits)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None or self._streams is None:
            self._streams = Streams([int(self.np_random.integers(2**31))])
        self._observation = self.world.reset(self._streams, 1)
        return self._as_numpy(), {}

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self._streams is None:
            raise RuntimeError("step before reset: call reset() first, and after every terminal step")
        outcome = step(self.world, self._observation, torch.tensor([[int(action)]]), self._streams)
        self._observation = outcome.next_observation
        return self._as_numpy(), float(outcome.reward), bool(outcome.is_terminal), False, {}

    def _as_numpy(self) -> np.ndarray:
        return self._observation[0, 0].to(torch.int8).numpy()
