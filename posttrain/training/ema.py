"""Exponential moving averages of a network's weights, for targets that move slowly."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, *, decay: float) -> None:
    """In place: every weight of `average` becomes  decay · itself + (1 − decay) · network's.  Buffers are copied.

    `average` is a frozen copy of the network in float32 or float64: bfloat16 rounds a change of less than 1/256 of a
    weight to nothing, and (1 − decay) makes most changes smaller than that. Tied weights are averaged once.

    Raises ValueError for other dtypes, for networks of different structure, and for weights that ZeRO-3 partitions.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}, needs 0 <= decay < 1: at 1 the average never moves")
    ours, theirs = dict(average.named_parameters()), dict(network.named_parameters())
    if ours.keys() != theirs.keys():
        names = ", ".join(sorted(ours.keys() ^ theirs.keys())[:3])
        raise ValueError(f"{names}: a weight of one network only; needed an average made as a copy of the network")
    for name, mean in ours.items():
        _check(name, mean, theirs[name])
    for name, mean in ours.items():
        mean.lerp_(theirs[name].to(mean.dtype), 1 - decay)
    for mean, current in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(current)


def _check(name: str, mean: Tensor, current: Tensor) -> None:
    if mean.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} of the average is {mean.dtype}, needs float32 or float64: small steps would round away"
        )
    if mean.shape != current.shape:
        raise ValueError(f"{name} is {tuple(mean.shape)} in the average, {tuple(current.shape)} in the network")
    if current.numel() == 0:
        raise ValueError(
            f"{name} has no element on this rank: ZeRO-3 partitions it; needed the whole weight, as under ZeRO-2"
        )
