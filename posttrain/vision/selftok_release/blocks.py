"""The parts that the encoder and both decoders share. Attribute names are those of the published keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.vision.selftok_release.layout import FIRST_POSITION, N_FREQUENCIES, POSITION_STEP


class TimeEmbedder(nn.Module):
    """A time or a position as a vector: 128 cosines, 128 sines, and two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(N_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        """[N, width] from times [N] in thousandths."""
        half = N_FREQUENCIES // 2
        exponents = torch.arange(half, dtype=torch.float64, device=times.device) / half
        # In float64: in float32 the last bit of a frequency, which differs by device, turns position 5,000 by 3e-4.
        angles = times.double().unsqueeze(1) * torch.exp(-math.log(10_000) * exponents)
        dtype = next(self.mlp.parameters()).dtype
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))


class FeedForward(nn.Module):
    """Two linear layers with four times the width between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class PatchEmbedder(nn.Module):
    """A latent image as a row of patches, left to right and top to bottom."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, patches, width] from latents [B, C, H, W]."""
        return self.proj(latents).flatten(2).transpose(1, 2)


def modulation(width: int, n_parts: int) -> nn.Sequential:
    """The layer that turns a condition [..., width] into `n_parts` shifts, scales and gates [..., n_parts * width]."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, n_parts * width))


def normalise(x: Tensor, shift: Tensor | float, scale: Tensor | float) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, without weights of its own."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def attend(q: Tensor, k: Tensor, v: Tensor, n_heads: int, is_visible: Tensor | None) -> Tensor:
    """Attention over [B, N, width] in `n_heads` heads; `is_visible` bool, broadcast to [B, heads, queries, keys]."""
    q, k, v = (part.unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=is_visible).transpose(1, 2).flatten(2)


def token_positions(n_tokens: int, device: torch.device) -> Tensor:
    """[K] the position of each token index, in thousandths of time."""
    return FIRST_POSITION + POSITION_STEP * torch.arange(n_tokens, device=device)


def middle(table: Tensor, side: int) -> Tensor:
    """[1, side², width]: the middle square of a table of positions [1, grid², width]."""
    grid = math.isqrt(table.shape[1])
    first = (grid - side) // 2
    square = table.unflatten(1, (grid, grid))
    return square[:, first : first + side, first : first + side].flatten(1, 2)
