"""ButtonGrid (arXiv 2211.02222): walk over buttons until all are on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posttrain.control.worlds import grid
from posttrain.control.worlds.streams import Streams

PLAYER, ON, OFF, N_CHANNELS = 0, 1, 2, 3


@dataclass(frozen=True)
class ButtonGrid:
    """Stepping onto a button toggles it; acting with all buttons on earns 1 and draws everything anew. It never ends.

    With chance `p_event`, by default 1/(10 n²), all buttons switch on after a step. First observations, which the
    paper's text leaves open: buttons on distinct cells, all off, the player anywhere.
    """

    n: int = 10
    n_buttons: int = 3
    p_event: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.n_buttons <= self.n**2:
            raise ValueError(f"n_buttons is {self.n_buttons}: a {self.n} x {self.n} grid has room for {self.n**2}")

    @property
    def n_bits(self) -> int:
        return self.n**2 * N_CHANNELS

    @property
    def n_actions(self) -> int:
        return grid.N_MOVES

    @property
    def p_chance(self) -> float:
        return 0.1 / self.n**2 if self.p_event is None else self.p_event

    def without_chance(self) -> ButtonGrid:
        return replace(self, p_event=0.0)

    def reset(self, streams: Streams, n: int) -> Tensor:
        position = streams.integers(self.n**2, n)
        buttons = streams.distinct(self.n_buttons, self.n**2, n)
        off = grid.at(buttons, self.n**2).sum(-2)
        return _observation(grid.at(position, self.n**2), torch.zeros_like(off), off)

    def reward(self, observation: Tensor) -> Tensor:
        seen = grid.cells(observation, N_CHANNELS)
        is_done = (seen[..., OFF].sum(-1) == 0) & (seen[..., ON].sum(-1) > 0)
        return is_done.float()

    def is_terminal(self, observation: Tensor) -> Tensor:
        return torch.zeros(observation.shape[:-1], dtype=torch.bool)

    def move(self, observation: Tensor, action: Tensor, streams: Streams) -> Tensor:
        n_copies = observation.shape[1]
        seen = grid.cells(observation, N_CHANNELS)
        position = seen[..., PLAYER].argmax(-1)
        after = grid.moved(position, action, self.n)
        player = grid.at(after, self.n**2)
        is_toggled = (player > 0) & (after != position)[..., None]
        on = torch.where(is_toggled, seen[..., OFF], seen[..., ON])
        off = torch.where(is_toggled, seen[..., ON], seen[..., OFF])
        is_event = (streams.uniform(n_copies) < self.p_chance)[..., None]
        on, off = torch.where(is_event, on + off, on), torch.where(is_event, 0.0, off)
        is_done = self.reward(observation) > 0
        return torch.where(is_done[..., None], self.reset(streams, n_copies), _observation(player, on, off))


def _observation(player: Tensor, on: Tensor, off: Tensor) -> Tensor:
    return torch.stack((player, on, off), -1).flatten(-2)
