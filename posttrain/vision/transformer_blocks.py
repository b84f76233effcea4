"""Transformer blocks of two streams, picture patches and tokens, in the manner of the joint blocks of SD3 (MMDiT).

Axes: B images, L positions of a stream, N patches, d width. Each stream has its own weights, and a modulation of six
vectors scales, shifts and gates it (AdaLN): by time, by position, or learned and constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_MODULATIONS = 6
MAX_PERIOD = 10_000.0


class Modulation(nn.Module):
    """Six vectors [..., 6 d] from a condition [..., d]; near the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, N_MODULATIONS * width)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor) -> Tensor:
        return self.linear(F.silu(condition))


class Stream(nn.Module):
    """The weights of one stream in one block: what it asks and offers in attention, and what it makes of the answer.

    `is_last` leaves out what a stream that ends here has no use for: it then offers keys and values only.
    """

    def __init__(self, width: int, n_heads: int, *, is_last: bool = False) -> None:
        super().__init__()
        self.n_heads, self.is_last = n_heads, is_last
        self.to_qkv = nn.Linear(width, (2 if is_last else 3) * width)
        if not is_last:
            self.project = nn.Linear(width, width)
            self.widen = nn.Linear(width, 4 * width)
            self.narrow = nn.Linear(4 * width, width)

    def qkv(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, ...]:
        """(q, k, v), or (k, v) of a last stream, each [B, heads, L, d / heads], from x [B, L, d]."""
        shift, scale, *_ = modulation.chunk(N_MODULATIONS, -1)
        projected = self.to_qkv(_modulated(x, shift, scale))
        return tuple(
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in projected.split(x.shape[-1], -1)
        )

    def absorb(self, x: Tensor, attended: Tensor, modulation: Tensor) -> Tensor:
        """x [B, L, d] after the attention's answer [B, heads, L, d / heads] and the feed-forward part."""
        _, _, gate, shift, scale, mlp_gate = modulation.chunk(N_MODULATIONS, -1)
        x = x + (1 + gate) * self.project(attended.transpose(1, 2).flatten(2))
        inner = self.narrow(F.gelu(self.widen(_modulated(x, shift, scale)), approximate="tanh"))
        return x + (1 + mlp_gate) * inner


class JointBlock(nn.Module):
    """Tokens and patches attend to both; hidden tokens are no keys."""

    def __init__(self, width: int, n_heads: int, *, is_last: bool) -> None:
        """is_last: the tokens are not read after this block."""
        super().__init__()
        self.tokens = Stream(width, n_heads, is_last=is_last)
        self.patches = Stream(width, n_heads)
        self.token_modulation = Modulation(width)
        self.patch_modulation = Modulation(width)

    def forward(
        self, tokens: Tensor, patches: Tensor, position: Tensor, time: Tensor, is_key: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """tokens [B, K, d], patches [B, N, d], conditions position [1, K, d] and time [B, 1, d].

        is_key: [B, 1, 1, K + N] bool, False where nothing may be read; None: all may.
        """
        for_tokens, for_patches = self.token_modulation(position), self.patch_modulation(time)
        *q_tokens, k_tokens, v_tokens = self.tokens.qkv(tokens, for_tokens)
        q_patches, k_patches, v_patches = self.patches.qkv(patches, for_patches)
        attended = F.scaled_dot_product_attention(
            torch.cat((*q_tokens, q_patches), 2),
            torch.cat((k_tokens, k_patches), 2),
            torch.cat((v_tokens, v_patches), 2),
            attn_mask=is_key,
        )
        patches = self.patches.absorb(patches, attended[:, :, -patches.shape[1] :], for_patches)
        if self.tokens.is_last:
            return tokens, patches
        return self.tokens.absorb(tokens, attended[:, :, : tokens.shape[1]], for_tokens), patches


class DualBlock(nn.Module):
    """Patches attend to themselves alone; queries attend to patches and queries."""

    def __init__(self, width: int, n_heads: int, *, is_last: bool) -> None:
        """is_last: the patches are not read after this block."""
        super().__init__()
        self.patches = Stream(width, n_heads, is_last=is_last)
        self.queries = Stream(width, n_heads)
        self.patch_modulation = nn.Parameter(torch.zeros(N_MODULATIONS * width))
        self.query_modulation = Modulation(width)

    def forward(self, queries: Tensor, patches: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """queries [B, K, d], patches [B, N, d], condition position [1, K, d]."""
        for_queries = self.query_modulation(position)
        q, k_queries, v_queries = self.queries.qkv(queries, for_queries)
        *q_patches, k, v = self.patches.qkv(patches, self.patch_modulation)
        read = F.scaled_dot_product_attention(q, torch.cat((k, k_queries), 2), torch.cat((v, v_queries), 2))
        queries = self.queries.absorb(queries, read, for_queries)
        if self.patches.is_last:
            return queries, patches
        seen = F.scaled_dot_product_attention(q_patches[0], k, v)
        return queries, self.patches.absorb(patches, seen, self.patch_modulation)


class TimeEmbedding(nn.Module):
    """[B, 1, d] from times [B]: sines and cosines of 1000 t, then two layers."""

    frequencies: Tensor  # [width / 2]

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(MAX_PERIOD) * torch.arange(half) / half), persistent=False
        )
        self.layers = nn.Sequential(nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = 1000 * t.float().unsqueeze(-1) * self.frequencies
        return self.layers(torch.cat((angles.cos(), angles.sin()), -1)).unsqueeze(1)


def to_patches(images: Tensor, patch_px: int) -> Tensor:
    """[B, N, 3 patch_px²], row by row, from [B, 3, H, W]."""
    return F.pixel_unshuffle(images, patch_px).flatten(2).transpose(1, 2)


def from_patches(patches: Tensor, patch_px: int) -> Tensor:
    """The square images [B, 3, H, W] of `to_patches`."""
    side = math.isqrt(patches.shape[1])
    return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (side, side)), patch_px)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)
