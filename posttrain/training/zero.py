"""Gradients that DeepSpeed ZeRO has reduced and partitioned, through its public `safe_*` functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad, safe_get_local_grad, safe_set_full_grad, safe_set_local_grad
from torch import Tensor, nn


class PartitionedGradients:
    """ZeRO-3: each rank holds a slice of every gradient, so a norm costs one all-reduce of a scalar."""

    def __init__(self, parameters: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self._parameters = parameters

    def norms(self) -> dict[str, float]:
        squares = torch.stack([_sum_of_squares(map(safe_get_local_grad, own)) for own in self._parameters.values()])
        dist.all_reduce(squares)
        return dict(zip(self._parameters, squares.sqrt().tolist(), strict=True))

    def scale(self, network: str, factor: float) -> None:
        for parameter in self._parameters[network]:
            safe_set_local_grad(parameter, _existing(safe_get_local_grad(parameter)) * factor)


class OwnedGradients:
    """ZeRO-1 and ZeRO-2: a gradient lives on the ranks that step its weights.

    DeepSpeed's public functions reassemble it with an all-reduce of its size, once per step for the norm and once more
    if it must be scaled. That is small beside the reduction of every micro-batch.
    """

    def __init__(self, parameters: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self._parameters = parameters

    def norms(self) -> dict[str, float]:
        squares = torch.stack([_sum_of_squares(map(safe_get_full_grad, own)) for own in self._parameters.values()])
        return dict(zip(self._parameters, squares.sqrt().tolist(), strict=True))

    def scale(self, network: str, factor: float) -> None:
        for parameter in self._parameters[network]:
            safe_set_full_grad(parameter, _existing(safe_get_full_grad(parameter)) * factor)


def _existing(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise RuntimeError(
            "DeepSpeed holds no gradient for a trained parameter: needed one after the last backward pass of a step; "
            "does the parameter take part in the loss?"
        )
    return gradient


def _sum_of_squares(gradients: Iterable[Tensor | None]) -> Tensor:
    return torch.stack([_existing(gradient).float().square().sum() for gradient in gradients]).sum()
