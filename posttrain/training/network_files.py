"""A trained network as an ordinary Hugging Face folder, written from gathered weights and read back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.models.lora import has_lora, merge_lora

LORA_WEIGHTS = "lora/weights.safetensors"  # below the network's folder, where no loader takes it for a model's weights


def save_network(folder: Path, network: PreTrainedModel, state_dict: Mapping[str, Tensor], *, prefix: str) -> None:
    """Write config and safetensors of one network; `state_dict` is that of the module which holds it as `prefix`.

    A network with LoRA adapters is written as the plain network that it equals, and its trained weights once more by
    themselves: training goes on from those.
    """
    start = f"{prefix}."
    own = {name.removeprefix(start): tensor for name, tensor in state_dict.items() if name.startswith(start)}
    for tied in network.all_tied_weights_keys:  # engines gather a tied weight twice, as two tensors
        own.pop(tied, None)
    if has_lora(network):
        frozen = _frozen(network)
        (folder / LORA_WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: own[name].contiguous() for name in own.keys() - frozen}, folder / LORA_WEIGHTS)
        own = merge_lora(network, own)
    network.save_pretrained(folder, state_dict=own)


def load_network(folder: Path, network: PreTrainedModel) -> None:
    """Put the weights that `save_network` wrote into a network of the same shape; nothing is cast.

    Of a network with LoRA adapters only the trained weights are read; the frozen ones are those it was built with.
    Raises ValueError when names differ: another architecture, or a folder that is no network.
    """
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob(LORA_WEIGHTS if has_lora(network) else "*.safetensors")):
        weights |= load_file(path)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    absent = set(missing) - _frozen(network) - set(network.all_tied_weights_keys)
    if absent or unexpected:
        raise ValueError(
            f"{folder} does not fit {type(network).__name__}: it lacks {sorted(absent)[:3]} and has unknown "
            f"{sorted(unexpected)[:3]}. Was it saved by another model or version?"
        )


def _frozen(network: PreTrainedModel) -> set[str]:
    return {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
