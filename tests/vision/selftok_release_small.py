"""The published structure at widths that a test can afford."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from posttrain.vision.selftok_release.layout import ReleaseSizes
from posttrain.vision.selftok_release.load import ReleasedNetworks, build_networks, to_published

SMALL = ReleaseSizes(
    n_tokens=10,
    k_per_stage=(4, 3, 1, 1, 1),
    codebook_size=24,
    code_dim=4,
    latent_channels=3,
    latent_px=4,
    patch=2,
    image_width=8,
    image_heads=2,
    query_width=12,
    query_heads=3,
    n_encoder_blocks=2,
    encoder_grid=4,
    decoder_width=16,
    decoder_heads=2,
    n_decoder_blocks=3,
    decoder_grid=6,
)


def small_networks(*, is_renderer: bool, n_canvas: int = 1, seed: int = 0) -> ReleasedNetworks:
    """Float64 networks in eval mode in which every tensor matters: all are N(0, 0.3²)."""
    shapes = {"model.mask_token": (1, n_canvas, SMALL.decoder_width)} if is_renderer else {}
    networks = build_networks(SMALL, shapes)
    generator = torch.Generator().manual_seed(seed)
    for network in (networks.encoder, networks.decoder):
        network.double().eval().requires_grad_(False)
        for name, tensor in network.state_dict().items():
            if name not in ("context_pos_embed", "codes"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.3)
    # The two files of a variant have one encoder.
    codes = torch.randn(networks.encoder.codes.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    networks.encoder.codes.copy_(torch.nn.functional.normalize(codes, dim=-1))
    return networks


def arrays(networks: ReleasedNetworks) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in to_published(networks).items()}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class IdentityLatents:
    """A codec for images that are latents already: the first three channels are the image, blown up eight times."""

    def encode(self, images: Tensor) -> Tensor:
        return images[:, :, ::8, ::8]

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
