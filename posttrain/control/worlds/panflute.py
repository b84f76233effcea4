"""PanFlute (arXiv 2211.02222): sound travels through pipes of different length and must leave all of them at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from posttrain.control.worlds.streams import Streams


@dataclass(frozen=True)
class PanFlute:
    """Pipe i has i + 1 cells; an action blows one pipe; each step moves all sound on by one cell.

    The reward is 1 when every pipe's last cell sounds. Blowing n_pipes − 1, …, 0 in a circle earns 1 in n_pipes steps,
    which is the optimum. With chance `p_event`, by default 1/n_pipes², all last cells sound after a step. The task
    never ends.
    """

    n_pipes: int = 5
    p_event: float | None = None

    def __post_init__(self) -> None:
        if self.n_pipes < 2:
            raise ValueError(f"n_pipes is {self.n_pipes}: with fewer than 2 there is nothing to bring together")

    @property
    def n_bits(self) -> int:
        return self.n_pipes * (self.n_pipes + 1) // 2

    @property
    def n_actions(self) -> int:
        return self.n_pipes

    @property
    def p_chance(self) -> float:
        return 1 / self.n_pipes**2 if self.p_event is None else self.p_event

    def without_chance(self) -> PanFlute:
        return replace(self, p_event=0.0)

    def reset(self, streams: Streams, n: int) -> Tensor:
        return torch.zeros(len(streams), n, self.n_bits)

    def reward(self, observation: Tensor) -> Tensor:
        return observation[..., self._last].prod(-1)

    def is_terminal(self, observation: Tensor) -> Tensor:
        return torch.zeros(observation.shape[:-1], dtype=torch.bool)

    def move(self, observation: Tensor, action: Tensor, streams: Streams) -> Tensor:
        after = observation.roll(1, -1)  # what enters a first cell from the pipe before is overwritten
        after[..., self._first] = one_hot(action, self.n_pipes).to(observation.dtype)
        if self.p_chance > 0:
            is_event = streams.uniform(observation.shape[1]) < self.p_chance
            after[..., self._last] = torch.where(is_event[..., None], 1.0, after[..., self._last])
        return after

    @cached_property
    def _first(self) -> Tensor:
        pipe = torch.arange(self.n_pipes)
        return pipe * (pipe + 1) // 2

    @cached_property
    def _last(self) -> Tensor:
        return self._first + torch.arange(self.n_pipes)
