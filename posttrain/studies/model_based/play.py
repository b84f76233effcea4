"""What a policy earns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import Episodes
from posttrain.control.worlds.world import World

Act = Callable[[Tensor], Tensor]  # observations [S, B, n_bits] -> actions [S, B]


def mean_return(world: World, act: Act, streams: Streams, *, n_copies: int, n_steps: int) -> Tensor:
    """[S] rewards of one episode of at most `n_steps`, summed and averaged over copies."""
    episodes = Episodes(world, streams, n_copies)
    earned = torch.zeros(len(streams), n_copies)
    is_running = torch.ones(len(streams), n_copies, dtype=torch.bool)
    for _ in range(n_steps):
        row = episodes.act(act(episodes.observation))
        earned += torch.where(is_running, row.reward, 0.0)
        is_running &= ~row.is_terminal
        if not bool(is_running.any()):
            break
    return earned.mean(-1)
