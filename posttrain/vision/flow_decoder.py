"""The decoder of Selftok: rectified flow from noise to the image, told by the tokens that its time may see.

    x_t = t eps + (1 − t) x,    dx_t / dt = v = eps − x = (x_t − x) / t

The network predicts x. (To predict v it would have to carry the noise of every pixel through its width.)
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Flag, auto

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.vision.token_schedule import TokenSchedule, noise_level
from posttrain.vision.transformer_blocks import JointBlock, TimeEmbedding, from_patches, to_patches


class HideBy(Flag):
    """How a hidden token is kept from the picture. Either suffices; neither is the negative control of the tests."""

    NOTHING = 0
    CONTENT = auto()  # its code is replaced by zeros
    KEYS = auto()  # no position attends to it


class FlowDecoder(nn.Module):
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
        hide_by: HideBy = HideBy.CONTENT | HideBy.KEYS,
    ) -> None:
        super().__init__()
        self.patch_px, self.hide_by = patch_px, hide_by
        self.embed = nn.Linear(3 * patch_px**2, width)
        self.patch_place = nn.Parameter(torch.randn(n_patches, width))
        self.embed_code = nn.Linear(code_dim, width)
        self.position = nn.Parameter(torch.randn(1, n_tokens, width))
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(
            JointBlock(width, n_heads, is_last=index == n_blocks - 1) for index in range(n_blocks)
        )
        self.to_pixels = nn.Linear(width, 3 * patch_px**2)

    def forward(self, noisy: Tensor, level: Tensor, codes: Tensor, is_visible: Tensor) -> Tensor:
        """The predicted images [B, 3, H, W].

        noisy [B, 3, H, W] at noise levels [B]; codes [B, K, D] and is_visible [B, K] bool in index order.
        """
        return self.from_embedding(self.embed(to_patches(noisy, self.patch_px)), level, codes, is_visible)

    def from_embedding(self, patches: Tensor, level: Tensor, codes: Tensor, is_visible: Tensor) -> Tensor:
        """The same from patches that are already vectors [B, N, d]."""
        content = F.layer_norm(codes, codes.shape[-1:])
        if HideBy.CONTENT in self.hide_by:
            content = torch.where(is_visible.unsqueeze(-1), content, 0.0)
        tokens = self.embed_code(content) + self.position
        patches = patches + self.patch_place
        is_key = None
        if HideBy.KEYS in self.hide_by:
            is_key = F.pad(is_visible, (0, patches.shape[1]), value=True)[:, None, None]
        time = self.time(level)
        for block in self.blocks:
            tokens, patches = block(tokens, patches, self.position, time, is_key)
        return from_patches(self.to_pixels(F.layer_norm(patches, patches.shape[-1:])), self.patch_px)


def euler_step(noisy: Tensor, image: Tensor, level: Tensor, next_level: Tensor) -> Tensor:
    """x at `next_level` along the straight line from x at `level` to the predicted image: x̂ + (b / a)(x_a − x̂).

    The same as the Euler step x_a − (a − b) v with v = (x_a − x̂) / a.
    """
    return image + (next_level / level) * (noisy - image)


@torch.no_grad()
def sample_flow(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: TokenSchedule,
    *,
    n_steps: int,
    shift: float,
) -> Tensor:
    """Images [B, 3, H, W] from noise, by `n_steps` Euler steps over equal parts of the time.

    predict(noisy, level [B], is_visible [B, K]) is the decoder with its codes, and guidance where it is wanted.
    """
    times = torch.linspace(1, 0, n_steps + 1, device=noise.device)
    levels = noise_level(times, shift=shift)
    x = noise
    for time, level, next_level in zip(times[:-1], levels[:-1], levels[1:], strict=True):
        is_visible = schedule.is_visible(time.expand(len(x)))
        x = euler_step(x, predict(x, level.expand(len(x)), is_visible), level, next_level)
    return x


def guided(decoder: FlowDecoder, codes: Tensor, *, guidance: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The decoder with classifier-free guidance: x̂(nothing) + guidance (x̂(tokens) − x̂(nothing)); 1 is none."""

    def predict(noisy: Tensor, level: Tensor, is_visible: Tensor) -> Tensor:
        told = decoder(noisy, level, codes, is_visible)
        if guidance == 1:
            return told
        untold = decoder(noisy, level, codes, torch.zeros_like(is_visible))
        return untold + guidance * (told - untold)

    return predict
