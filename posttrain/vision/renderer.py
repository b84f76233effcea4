"""The one-step renderer: the decoder's network on a learned canvas in place of noise, so decoding is deterministic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posttrain.vision.flow_decoder import FlowDecoder


class Renderer(nn.Module):
    """Codes [B, K, D] to images [B, 3, H, W] in one pass, at noise level 1.

    The canvas starts as 0, the mean of what the decoder is given at pure noise (but for the embedding's bias).
    """

    def __init__(self, network: FlowDecoder) -> None:
        """network: taken over, not copied. Its embedding of pixels is not used."""
        super().__init__()
        self.network = network
        n_patches, width = network.patch_place.shape
        self.canvas = nn.Parameter(torch.zeros(n_patches, width))
        del network.embed

    def forward(self, codes: Tensor, is_visible: Tensor) -> Tensor:
        """codes [B, K, D] and is_visible [B, K] bool in index order."""
        patches = self.canvas.expand(len(codes), -1, -1)
        return self.network.from_embedding(patches, codes.new_ones(1), codes, is_visible)
