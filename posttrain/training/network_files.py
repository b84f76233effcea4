"""A trained network as an ordinary Hugging Face folder, written from gathered weights and read back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel


def save_network(folder: Path, network: PreTrainedModel, state_dict: Mapping[str, Tensor], *, prefix: str) -> None:
    """Write config and safetensors of one network; `state_dict` is that of the module which holds it as `prefix`."""
    start = f"{prefix}."
    own = {name.removeprefix(start): tensor for name, tensor in state_dict.items() if name.startswith(start)}
    for tied in network.all_tied_weights_keys:  # engines gather a tied weight twice, as two tensors
        own.pop(tied, None)
    network.save_pretrained(folder, state_dict=own)


def load_network(folder: Path, network: PreTrainedModel) -> None:
    """Put the weights that `save_network` wrote into a network of the same shape; nothing is cast.

    Raises ValueError when names differ: another architecture, or a folder that is no network.
    """
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    absent = set(missing) - set(network.all_tied_weights_keys)
    if absent or unexpected:
        raise ValueError(
            f"{folder} does not fit {type(network).__name__}: it lacks {sorted(absent)[:3]} and has unknown "
            f"{sorted(unexpected)[:3]}. Was it saved by another model or version?"
        )
