"""Optimiser, scheduler and random-generator state as safetensors and JSON, restored bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from posttrain.provenance import write_json

OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_GROUPS = "optimizer.json"
SCHEDULER = "scheduler.json"

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def save_optimizer(folder: Path, optimizer: Optimizer, named_parameters: NamedParameters) -> None:
    """Write state tensors under `<key>/<parameter name>`, all else (hyper-parameters, scalars) as JSON.

    Names, not positions, identify parameters: a changed order of parameters cannot mix up their moments.
    """
    names = {parameter: name for name, parameter in named_parameters}
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        name = names[parameter]
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value.detach().contiguous()
            else:
                scalars.setdefault(name, {})[key] = value
    groups = [
        {
            "parameters": [names[parameter] for parameter in group["params"]],
            "options": {key: _plain(value) for key, value in group.items() if key != "params"},
        }
        for group in optimizer.param_groups
    ]
    save_file(tensors, folder / OPTIMIZER_TENSORS)
    write_json(folder / OPTIMIZER_GROUPS, {"groups": groups, "scalars": scalars})


def load_optimizer(folder: Path, optimizer: Optimizer, named_parameters: NamedParameters) -> None:
    """Restore what `save_optimizer` wrote into an optimiser over the same named parameters.

    Raises ValueError when a parameter group does not hold the parameters it was saved with, and FileNotFoundError when
    DeepSpeed or FSDP saved the state in a form of their own.
    """
    if not (folder / OPTIMIZER_GROUPS).is_file():
        raise FileNotFoundError(
            f"{folder} has no {OPTIMIZER_GROUPS}: it was saved under DeepSpeed or FSDP, whose optimiser state only "
            "the same engine reads. Resume with that engine, or start a new run from the networks in the folder"
        )
    names = {parameter: name for name, parameter in named_parameters}
    saved = json.loads((folder / OPTIMIZER_GROUPS).read_text())
    groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    _check_groups(folder, saved["groups"], groups)
    state: dict[str, dict[str, Any]] = {name: dict(scalars) for name, scalars in saved["scalars"].items()}
    for tensor_name, tensor in load_file(folder / OPTIMIZER_TENSORS).items():
        key, name = tensor_name.split("/", 1)
        state.setdefault(name, {})[key] = tensor
    # torch identifies parameters by their position in the optimiser at hand.
    position = {name: index for index, name in enumerate(name for names_of_group in groups for name in names_of_group)}
    optimizer.load_state_dict(
        {
            "state": {position[name]: entries for name, entries in state.items()},
            "param_groups": [
                {"params": [position[name] for name in group], **_options(was["options"], current)}
                for group, was, current in zip(groups, saved["groups"], optimizer.param_groups, strict=True)
            ],
        }
    )
    _undo_casts(optimizer, names, state)


def save_scheduler(folder: Path, scheduler: LRScheduler) -> None:
    """Write the schedule's counters and learning rates as JSON; its functions are code and are not stored."""
    write_json(folder / SCHEDULER, scheduler.state_dict())


def load_scheduler(folder: Path, scheduler: LRScheduler) -> None:
    """Restore what `save_scheduler` wrote."""
    scheduler.load_state_dict(json.loads((folder / SCHEDULER).read_text()))


def save_rng_state(path: Path) -> None:
    """Write the states of Python's, NumPy's and torch's generators (CPU, and the current CUDA device) as JSON."""
    version, words, next_gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached_gauss = np.random.get_state()
    state = {
        "python": [version, list(words), next_gauss],
        "numpy": [algorithm, keys.tolist(), position, has_gauss, cached_gauss],
        "torch": _to_hex(torch.get_rng_state()),
        "cuda": _to_hex(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
    }
    write_json(path, state)


def load_rng_state(path: Path) -> None:
    """Set the generators to the states that `save_rng_state` wrote."""
    state = json.loads(path.read_text())
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))
    algorithm, keys, position, has_gauss, cached_gauss = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, cached_gauss))
    torch.set_rng_state(_from_hex(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_hex(state["cuda"]))


def _check_groups(folder: Path, saved: list[dict[str, Any]], current: list[list[str]]) -> None:
    if len(saved) != len(current):
        raise ValueError(f"{folder} has {len(saved)} parameter groups, the optimiser {len(current)}: another config?")
    for index, (group, names) in enumerate(zip(saved, current, strict=True)):
        differing = sorted(set(group["parameters"]) ^ set(names))
        if differing:
            raise ValueError(
                f"parameter group {index} of {folder} differs from the optimiser's in {len(differing)} parameters, "
                f"first {differing[0]}: was the run started with another model or another set of trained parameters?"
            )


def _options(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples and no tensors: give each option the type that the optimiser at hand uses."""
    return {key: _like(value, current.get(key)) for key, value in saved.items()}


def _like(value: Any, current: Any) -> Any:
    if isinstance(current, tuple):
        return tuple(value)
    if isinstance(current, Tensor):
        return torch.full_like(current, value)
    return value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _undo_casts(optimizer: Optimizer, names: dict[nn.Parameter, str], saved: dict[str, dict[str, Any]]) -> None:
    """torch casts loaded state to the parameter's dtype; float32 moments of bfloat16 weights would be rounded."""
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            original = saved[names[parameter]][key]
            if isinstance(value, Tensor) and value.dtype != original.dtype:
                entries[key] = original.to(value.device)


def _to_hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
