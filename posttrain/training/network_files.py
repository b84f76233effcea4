"""A trained network as an ordinary Hugging Face folder, written from gathered weights and read back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from posttrain.models.lora import has_lora, merge_lora
from posttrain.models.quantized import is_quantized, without_quantization
from posttrain.models.roles import HeadOnTrunk, classifier_config

LORA_WEIGHTS = "lora/weights.safetensors"  # below the network's folder, where no loader takes it for a model's weights


def save_network(folder: Path, model: nn.Module, state_dict: Mapping[str, Tensor], *, name: str) -> None:
    """Write config and safetensors of the network `name` of `model`, from the state dict of the whole `model`.

    A network with LoRA adapters is written as the plain network that it equals, without quantisation, and its trained
    weights once more by themselves: training goes on from those. A head on the policy is written as the value model
    that the two amount to.
    """
    network, own = model.get_submodule(name), _part(state_dict, name)
    if isinstance(network, HeadOnTrunk):
        policy = _pretrained(model, "policy")
        trunk = _plain_weights(policy, _part(state_dict, "policy"))
        kept = {key: weight for key, weight in trunk.items() if key.startswith(f"{policy.base_model_prefix}.")}
        _write(folder, classifier_config(policy), {**kept, **own})
        return
    network = _pretrained(model, name)
    if has_lora(network):
        trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
        (folder / LORA_WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
        save_file({key: own[key].contiguous() for key in trained}, folder / LORA_WEIGHTS)
    if is_quantized(network):
        _write(folder, without_quantization(network.config), _plain_weights(network, own))
        return
    network.save_pretrained(folder, state_dict=_plain_weights(network, own))


def load_network(folder: Path, network: nn.Module) -> None:
    """Put the weights that `save_network` wrote into a network of the same shape; nothing is cast.

    Of a network with LoRA adapters only the trained weights are read; the frozen ones are those it was built with. Of
    a head on the policy only the head is read.
    Raises ValueError when names differ: another architecture, or a folder that is no network.
    """
    is_adapted = isinstance(network, PreTrainedModel) and has_lora(network)
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob(LORA_WEIGHTS if is_adapted else "*.safetensors")):
        weights |= load_file(path)
    if isinstance(network, HeadOnTrunk):
        weights = {name: weight for name, weight in weights.items() if name in network.state_dict()}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    absent = set(missing) - _frozen(network) - _tied(network)
    if absent or unexpected:
        raise ValueError(
            f"{folder} does not fit {type(network).__name__}: it lacks {sorted(absent)[:3]} and has unknown "
            f"{sorted(unexpected)[:3]}. Was it saved by another model or version?"
        )


def _write(folder: Path, config: PretrainedConfig, weights: dict[str, Tensor]) -> None:
    """A folder as `save_pretrained` writes it, of a network that exists in another form."""
    config.save_pretrained(folder)
    save_torch_state_dict({key: _own_storage(weight) for key, weight in weights.items()}, folder)


def _own_storage(weight: Tensor) -> Tensor:
    """FSDP2 gathers into one flat storage, of which a weight is a part; safetensors keeps whole storages."""
    is_whole = weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes
    return weight if is_whole else weight.clone(memory_format=torch.contiguous_format)


def _pretrained(model: nn.Module, name: str) -> PreTrainedModel:
    network = model.get_submodule(name)
    assert isinstance(network, PreTrainedModel)
    return network


def _part(state_dict: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}."
    return {key.removeprefix(start): weight for key, weight in state_dict.items() if key.startswith(start)}


def _plain_weights(network: PreTrainedModel, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tied weight once (engines gather it twice, as two tensors), adapters merged."""
    weights = {name: weight for name, weight in own.items() if name not in _tied(network)}
    return merge_lora(network, weights) if has_lora(network) else weights


def _tied(network: nn.Module) -> set[str]:
    return set(network.all_tied_weights_keys) if isinstance(network, PreTrainedModel) else set()


def _frozen(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
