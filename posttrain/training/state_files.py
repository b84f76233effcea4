"""State of any small learner as two files, safetensors and JSON, restored bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.provenance import write_json

TENSORS, REST = "state.safetensors", "state.json"
_TENSOR, _PAIRS = "tensor", "pairs"


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings and None. Tuples come back as lists.

    Raises TypeError for anything else, naming where it stands.
    """
    tensors: dict[str, Tensor] = {}
    write_json(folder / REST, _plain(state, "state", tensors))
    save_file(tensors, folder / TENSORS)


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote."""
    return _restored(json.loads((folder / REST).read_text()), load_file(folder / TENSORS))


def _plain(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`: a tensor becomes its name, a dict a list of pairs, since optimisers use numbers as keys."""
    if isinstance(value, Tensor):
        tensors[where] = value.detach().cpu().contiguous().clone()  # of its own memory: safetensors refuses sharing
        return {_TENSOR: where}
    if isinstance(value, Mapping):
        return {_PAIRS: [[key, _plain(entry, f"{where}.{key}", tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}.{place}", tensors) for place, entry in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}: needed tensors, numbers, strings, None, or dicts and lists")


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restored(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    return {key: _restored(entry, tensors) for key, entry in value[_PAIRS]}
