"""One AdamW over several networks, each with its own learning rate, first step and clip norm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import SchedulerType, TrainingArguments, get_scheduler


@dataclass(frozen=True, slots=True)
class Network:
    """A part of the trained module that is optimised on its own terms."""

    name: str  # the attribute that holds it: "policy" owns every parameter "policy.*"
    learning_rate: float
    max_grad_norm: float | None  # L2 norm that the network's gradient is scaled down to; None leaves it alone
    start_step: int = 0  # first step in which it moves; its learning rate schedule begins there


@dataclass(frozen=True, slots=True)
class AdamWSettings:
    """What the networks share. Weight decay is decoupled and spares biases and normalisation weights."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float


def network_parameters(model: nn.Module, networks: Sequence[Network]) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of each network.

    Raises ValueError when a trainable parameter belongs to no network (it would never move) or a network has none.
    """
    owned: dict[str, list[nn.Parameter]] = {network.name: [] for network in networks}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = name.split(".", 1)[0]
        if owner not in owned:
            raise ValueError(
                f"parameter '{name}' is trainable but belongs to none of the networks {sorted(owned)}: "
                "freeze it with requires_grad_(False) or name its network"
            )
        owned[owner].append(parameter)
    for name, parameters in owned.items():
        if not parameters:
            raise ValueError(f"network '{name}' has no trainable parameter: is it frozen, or named differently?")
    return owned


def build_optimizer(
    model: nn.Module, networks: Sequence[Network], settings: AdamWSettings, *, decayed: Collection[str]
) -> torch.optim.AdamW:
    """AdamW with up to two groups per network: the parameters named in `decayed`, and the rest with weight decay 0.

    Fused: it reads each weight once, and holds no temporary copies of the largest one.
    """
    network_parameters(model, networks)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = []
    for network in networks:
        own = [(name, parameter) for name, parameter in named if name.split(".", 1)[0] == network.name]
        for is_decayed, weight_decay in ((True, settings.weight_decay), (False, 0.0)):
            parameters = [parameter for name, parameter in own if (name in decayed) == is_decayed]
            if parameters:
                group = {"params": parameters, "lr": network.learning_rate, "weight_decay": weight_decay}
                groups.append({**group, "start_step": network.start_step})
    return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)


def build_scheduler(optimizer: torch.optim.Optimizer, args: TrainingArguments, n_steps: int) -> LRScheduler:
    """The schedule of the arguments over the steps in which each group moves; before its start_step its rate is 0.

    Raises ValueError when a group would never move, or starts late under a schedule that follows a metric.
    """
    starts = [group["start_step"] for group in optimizer.param_groups]
    if max(starts) >= n_steps:
        raise ValueError(f"a network starts to move at step {max(starts)} of {n_steps}: train longer or start earlier")
    schedulers = {start: _scheduler(optimizer, args, n_steps - start) for start in sorted(set(starts))}
    if not any(starts):
        return schedulers[0]
    unsuited = [scheduler for scheduler in schedulers.values() if not isinstance(scheduler, LambdaLR)]
    if unsuited:
        name = SchedulerType(args.lr_scheduler_type).value
        raise ValueError(f"lr_scheduler_type {name} cannot start late: choose one that is a function of the step")
    return LambdaLR(optimizer, [partial(_from_start, schedulers[start].lr_lambdas[0], start) for start in starts])


def _scheduler(optimizer: torch.optim.Optimizer, args: TrainingArguments, n_steps: int) -> LRScheduler:
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(n_steps),
        num_training_steps=n_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )


def _from_start(factor: Callable[[int], float], start: int, step: int) -> float:
    return factor(step - start) if step >= start else 0.0


def clip_scale(norm: float, max_norm: float | None) -> float:
    """The factor min(1, max_norm / norm) that brings a gradient of this norm down to `max_norm`."""
    return 1.0 if max_norm is None or norm <= max_norm else max_norm / norm


class NetworkGradients(Protocol):
    """Gradients of each network between the backward pass and the optimiser step, wherever an engine keeps them."""

    def norms(self) -> dict[str, float]:
        """Global L2 norm of each network's gradient, the same number on every rank."""
        ...

    def scale(self, network: str, factor: float) -> None:
        """Multiply the gradient of one network in place."""
        ...


class TensorGradients:
    """`parameter.grad`: whole and reduced already (one process, DDP), or FSDP2's DTensors."""

    def __init__(self, parameters: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self._parameters = parameters

    def norms(self) -> dict[str, float]:
        return {name: self._norm(parameters) for name, parameters in self._parameters.items()}

    def scale(self, network: str, factor: float) -> None:
        for parameter in self._parameters[network]:
            if parameter.grad is not None:
                _local(parameter.grad).mul_(factor)

    def _norm(self, parameters: Sequence[nn.Parameter]) -> float:
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
