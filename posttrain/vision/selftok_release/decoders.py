"""The two published decoders of tokens: a rectified flow that samples in steps, and a renderer that takes one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from posttrain.vision.selftok_release.blocks import PatchEmbedder, middle
from posttrain.vision.selftok_release.joint_transformer import JointTransformer
from posttrain.vision.selftok_release.layout import N_TIMES, ReleaseSizes, kappa

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t [B, C, H, W], t [B], is_token [B, K]) -> [B, C, H, W]


class FlowDecoder(JointTransformer):
    """The velocity v(x_t, t, tokens) of the rectified flow x_t = t ε + (1 − t) x, v = ε − x; t = 1 is noise."""

    pos_embed: Tensor  # [1, grid², width]

    def __init__(self, sizes: ReleaseSizes) -> None:
        super().__init__(sizes)
        self.x_embedder = PatchEmbedder(sizes.latent_channels, sizes.decoder_width, sizes.patch)
        self.register_buffer("pos_embed", torch.zeros(1, sizes.decoder_grid**2, sizes.decoder_width))

    def forward(self, noisy: Tensor, t: Tensor, codes: Tensor, is_token: Tensor) -> Tensor:
        """[B, C, H, W] velocity at noisy latents [B, C, H, W], t [B] in [0, 1], codes [B, K, D], is_token [B, K]."""
        image = self.x_embedder(noisy.to(self.pos_embed.dtype)) + middle(self.pos_embed, self.sizes.side)
        is_image = is_token.new_ones(len(is_token), image.shape[1])
        is_visible = torch.cat([is_token, is_image], dim=1)[:, None, None, :]
        return self.transform(image, N_TIMES * t, codes, is_token, is_visible).to(noisy.dtype)


class Renderer(JointTransformer):
    """Latents in one pass: a learned canvas in place of noise, the time fixed at t = 1.

    Unlike in the flow decoder, tokens read tokens only, never the canvas.
    """

    def __init__(self, sizes: ReleaseSizes, *, n_canvas: int) -> None:
        """`n_canvas` is the number of canvas vectors: 1, the same for all patches, or one per patch."""
        super().__init__(sizes)
        width = sizes.decoder_width
        self.mask_token = nn.Parameter(torch.randn(1, n_canvas, width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(sizes.side**2, width) * width**-0.5)

    def forward(self, codes: Tensor, is_token: Tensor) -> Tensor:
        """[B, C, H, W] latents of codes [B, K, D] and is_token [B, K], of which each row has at least one."""
        image = (self.mask_token + self.positional_embedding).expand(len(codes), -1, -1)
        n_tokens, n_patches = is_token.shape[1], image.shape[1]
        is_visible = torch.cat([is_token, is_token.new_ones(len(codes), n_patches)], dim=1)
        is_visible = is_visible.unsqueeze(1).repeat(1, n_tokens + n_patches, 1)
        is_visible[:, :n_tokens, n_tokens:] = False
        times = codes.new_full((len(codes),), N_TIMES)
        return self.transform(image, times, codes, is_token, is_visible.unsqueeze(1))


def sample_flow(
    velocity: Velocity, noise: Tensor, is_written: Tensor, *, k_per_stage: tuple[int, ...], n_steps: int
) -> Tensor:
    """[B, C, H, W] by Euler steps x ← x − v / n from noise at t = 1 to t = 0, in equal steps.

    At time t the velocity is given the tokens that are written (`is_written` [B, K]) and have an index up to kappa(t).
    kappa is of the exact time. The reference truncates the float32 of 1000 t, and so sees one step of time less, at
    most one index, in 7 of its 50 steps.
    """
    x = noise
    indexes = torch.arange(is_written.shape[1], device=noise.device)
    for step in range(n_steps):
        remaining = n_steps - step
        is_seen = indexes <= kappa(N_TIMES * remaining // n_steps, k_per_stage)
        t = noise.new_full((len(noise),), remaining / n_steps)
        x = x - velocity(x, t, is_written & is_seen) / n_steps
    return x
