"""Reading the published networks, strictly, from safetensors files.

The release is in .pth files, which are pickles. This library reads none: docs/selftok_release.md has the five lines
that turn one into safetensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from posttrain.vision.selftok_release.decoders import FlowDecoder, Renderer
from posttrain.vision.selftok_release.layout import PUBLISHED, RENAMED, ReleaseSizes, unused_keys
from posttrain.vision.selftok_release.query_encoder import QueryEncoder

QUERIES, CANVAS, NOISY_PATCHES = "encoder.query_tokens", "model.mask_token", "model.x_embedder.proj.weight"


@dataclass(frozen=True, slots=True)
class ReleasedNetworks:
    """What one published file holds: the encoder with its codes, and one of the two decoders."""

    encoder: QueryEncoder
    decoder: FlowDecoder | Renderer


def load_networks(
    path: Path,
    *,
    sizes: Mapping[int, ReleaseSizes] = PUBLISHED,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> ReleasedNetworks:
    """The networks of a converted tokenizer_*.safetensors or renderer_*.safetensors, in eval mode.

    `dtype` is the decoder's. The encoder has float32 at least: bfloat16 cannot tell the nearest of 32,768 codes.

    The file says by itself which variant it is (its number of queries) and which decoder it has (a canvas or patches
    of noise). Raises ValueError, naming the keys, unless it has exactly the keys and shapes of that variant.
    """
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is no .safetensors file: convert the published .pth file once, as docs/selftok_release.md shows"
        )
    with safe_open(path, framework="pt", device=device) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        variant = _variant(path, shapes, sizes)
        with torch.device("meta"):
            networks = build_networks(variant, shapes)
        wanted = wanted_shapes(networks)
        _require_same_keys(path, wanted, shapes, unused_keys(variant, is_renderer=CANVAS in shapes))
        for prefix, network, its_dtype in (
            ("encoder.", networks.encoder, torch.promote_types(dtype, torch.float32)),
            ("model.", networks.decoder, dtype),
        ):
            weights = {ours: file.get_tensor(theirs).to(its_dtype) for ours, theirs in _names(prefix, network)}
            network.load_state_dict(weights, assign=True)
            network.requires_grad_(False).eval()
    return networks


def build_networks(sizes: ReleaseSizes, shapes: Mapping[str, tuple[int, ...]]) -> ReleasedNetworks:
    """Untrained networks of the kind of decoder that a file of these shapes has."""
    if CANVAS in shapes:
        return ReleasedNetworks(QueryEncoder(sizes), Renderer(sizes, n_canvas=shapes[CANVAS][1]))
    return ReleasedNetworks(QueryEncoder(sizes), FlowDecoder(sizes))


def wanted_shapes(networks: ReleasedNetworks) -> dict[str, tuple[int, ...]]:
    """The file's name of every tensor of the networks -> its shape."""
    return {
        theirs: tuple(network.state_dict()[ours].shape)
        for prefix, network in (("encoder.", networks.encoder), ("model.", networks.decoder))
        for ours, theirs in _names(prefix, network)
    }


def to_published(networks: ReleasedNetworks) -> dict[str, Tensor]:
    """The networks' tensors under the file's names, as `load_networks` reads them back."""
    return {
        theirs: network.state_dict()[ours].contiguous()
        for prefix, network in (("encoder.", networks.encoder), ("model.", networks.decoder))
        for ours, theirs in _names(prefix, network)
    }


def _names(prefix: str, network: nn.Module) -> Iterable[tuple[str, str]]:
    """(our name, the file's name) of each tensor of a network."""
    return [(name, RENAMED.get(prefix + name, prefix + name)) for name in network.state_dict()]


def _variant(path: Path, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[int, ReleaseSizes]) -> ReleaseSizes:
    if QUERIES not in shapes or (CANVAS in shapes) == (NOISY_PATCHES in shapes):
        raise ValueError(
            f"{path} is no published Selftok file: needed {QUERIES}, and either {NOISY_PATCHES} (tokenizer_*) or "
            f"{CANVAS} (renderer_*); it has {len(shapes)} keys, the first are {sorted(shapes)[:4]}. Was a dictionary "
            "inside the .pth file saved, rather than the file's own?"
        )
    n_tokens = shapes[QUERIES][1]
    if n_tokens not in sizes:
        raise ValueError(f"{path} has {n_tokens} tokens, known are the variants of {sorted(sizes)} tokens")
    return sizes[n_tokens]


def _require_same_keys(
    path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], unused: tuple[str, ...]
) -> None:
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(name for name in found.keys() - wanted.keys() if not name.startswith(unused))
    misshapen = [
        f"{name} {found[name]} for {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    if missing or unexpected or misshapen:
        listed = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
            if names
        )
        raise ValueError(f"{path} does not fit: {listed}. {_likely_cause(missing, unexpected)}")


def _likely_cause(missing: list[str], unexpected: list[str]) -> str:
    if not missing and not unexpected:
        return "Shapes alone differ: is it another variant, such as the one of 512 px with 1536 tokens?"
    if any(".ln_q." in name or ".ln_k." in name for name in unexpected):
        return "The attention has norms of queries and keys: it is a later model than the release."
    if missing and not unexpected:
        return "Is the file complete: did the conversion keep every tensor, and did the download end?"
    return "Is it a file of this release? Please report the keys: the layout was derived from code, not from the file."
