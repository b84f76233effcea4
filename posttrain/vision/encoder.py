"""The encoder of Selftok: K learned queries read the picture, and each becomes one code vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.vision.transformer_blocks import DualBlock, to_patches


class QueryEncoder(nn.Module):
    """Images [B, 3, H, W] to unit vectors [B, K, D] in index order; a function of the image alone.

    The queries see one another in both directions: only the decoder's schedule makes the tokens autoregressive.
    """

    def __init__(
        self,
        *,
        n_tokens: int,
        n_patches: int,
        patch_px: int,
        code_dim: int,
        width: int,
        n_heads: int,
        n_blocks: int,
    ) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.embed = nn.Linear(3 * patch_px**2, width)
        # Of unit size: with 0.02 the queries start out alike, and training stays where every token says the same.
        self.patch_place = nn.Parameter(torch.randn(n_patches, width))
        self.queries = nn.Parameter(torch.randn(n_tokens, width))
        self.position = nn.Parameter(torch.randn(1, n_tokens, width))
        self.blocks = nn.ModuleList(
            DualBlock(width, n_heads, is_last=index == n_blocks - 1) for index in range(n_blocks)
        )
        self.to_code = nn.Linear(width, code_dim)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(to_patches(images, self.patch_px)) + self.patch_place
        queries = self.queries.expand(len(images), -1, -1)
        for block in self.blocks:
            queries, patches = block(queries, patches, self.position)
        return F.normalize(self.to_code(F.layer_norm(queries, queries.shape[-1:])), dim=-1)
