"""What trains Selftok's tokens: the flow decoder must rebuild the picture from noise and the tokens of that time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain.vision.flow_decoder import FlowDecoder
from posttrain.vision.token_schedule import TokenSchedule, noise_level


@dataclass(frozen=True, slots=True)
class FlowDraw:
    """The random part of one step of flow matching."""

    t: Tensor  # [B] time before the shift, in [0, 1]
    noise: Tensor  # [B, 3, H, W] standard normal
    is_dropped: Tensor  # [B] bool, tokens all hidden: what guidance needs


def draw_flow(images: Tensor, *, share_at_noise: float, p_drop: float, generator: torch.Generator) -> FlowDraw:
    """t is uniform, but 1 for the share of the batch that makes the tokens tell all; tokens are dropped elsewhere."""
    n = len(images)
    t = torch.rand(n, generator=generator)
    n_at_noise = round(share_at_noise * n)
    t[:n_at_noise] = 1.0
    is_dropped = torch.rand(n, generator=generator) < p_drop
    is_dropped[:n_at_noise] = False
    noise = torch.randn(images.shape, generator=generator)
    return FlowDraw(*(drawn.to(images.device) for drawn in (t, noise, is_dropped)))


def flow_loss(
    decoder: FlowDecoder, images: Tensor, codes: Tensor, draw: FlowDraw, *, schedule: TokenSchedule, shift: float
) -> Tensor:
    """Mean squared error of the predicted image, each time seeing the tokens up to kappa(t).

    images [B, 3, H, W]; codes [B, K, D] in index order, which the gradient reaches.
    """
    level = noise_level(draw.t, shift=shift)
    noisy = torch.lerp(images, draw.noise, level[:, None, None, None])
    is_visible = schedule.is_visible(draw.t) & ~draw.is_dropped.unsqueeze(1)
    return F.mse_loss(decoder(noisy, level, codes, is_visible), images)
