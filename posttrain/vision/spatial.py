"""The spatial control: one token for each patch of a grid, which knows of no other patch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.vision.transformer_blocks import to_patches


class PatchEncoder(nn.Module):
    """Images [B, 3, H, W] to unit vectors [B, K, D], one for each patch, row by row.

    With `shift_px` the grid starts so far down and right, and wraps around: things then straddle up to four patches.
    """

    def __init__(self, *, patch_px: int, code_dim: int, width: int, n_blocks: int, shift_px: int) -> None:
        super().__init__()
        self.patch_px, self.shift_px = patch_px, shift_px
        self.embed = nn.Linear(3 * patch_px**2, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
            )
            for _ in range(n_blocks)
        )
        self.to_code = nn.Linear(width, code_dim)

    def forward(self, images: Tensor) -> Tensor:
        shifted = images.roll((-self.shift_px, -self.shift_px), (-2, -1))
        x = self.embed(to_patches(shifted, self.patch_px))
        for block in self.blocks:
            x = x + block(x)
        return F.normalize(self.to_code(F.layer_norm(x, x.shape[-1:])), dim=-1)
