"""The published encoder `Enc-Qformer-Uni-XL/2`: K queries read a latent image, and each names its nearest code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.vision.selftok_release.blocks import (
    FeedForward,
    PatchEmbedder,
    TimeEmbedder,
    attend,
    middle,
    modulation,
    normalise,
    token_positions,
)
from posttrain.vision.selftok_release.layout import ReleaseSizes


class DualAttention(nn.Module):
    """The image attends to itself only; queries attend to the image and to all queries. There is no causal mask."""

    def __init__(self, sizes: ReleaseSizes) -> None:
        super().__init__()
        image, query = sizes.image_width, sizes.query_width
        self.image_heads, self.query_heads = sizes.image_heads, sizes.query_heads
        self.qkv, self.proj = nn.Linear(image, 3 * image), nn.Linear(image, image)
        self.to_query_kv = nn.Linear(image, 2 * query)
        self.query_linear, self.query_proj = nn.Linear(query, 3 * query), nn.Linear(query, query)

    def forward(self, image: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(what the image reads [B, P, image_width], what the queries read [B, K, query_width])."""
        q, k, v = self.qkv(image).chunk(3, dim=-1)
        image_k, image_v = self.to_query_kv(image).chunk(2, dim=-1)
        query_q, query_k, query_v = self.query_linear(queries).chunk(3, dim=-1)
        keys, values = torch.cat([image_k, query_k], dim=1), torch.cat([image_v, query_v], dim=1)
        read_by_image = attend(q, k, v, self.image_heads, None)
        read_by_queries = attend(query_q, keys, values, self.query_heads, None)
        return self.proj(read_by_image), self.query_proj(read_by_queries)


class DualBlock(nn.Module):
    """One block of two streams: a plain transformer for the image, one modulated by position for the queries."""

    def __init__(self, sizes: ReleaseSizes) -> None:
        super().__init__()
        self.attn = DualAttention(sizes)
        self.mlp, self.q_mlp = FeedForward(sizes.image_width), FeedForward(sizes.query_width)
        self.t_embedder = TimeEmbedder(sizes.query_width)
        self.adaLN_modulation = modulation(sizes.query_width, 6)

    def forward(self, image: Tensor, queries: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(self.t_embedder(positions)).chunk(
            6, dim=-1
        )
        image_read, query_read = self.attn(normalise(image, 0.0, 0.0), normalise(queries, shift, scale))
        image = image + image_read
        queries = queries + gate * query_read
        image = image + self.mlp(normalise(image, 0.0, 0.0))
        return image, queries + mlp_gate * self.q_mlp(normalise(queries, mlp_shift, mlp_scale))


class QueryEncoder(nn.Module):
    """Latent images to token indexes, and indexes to the code vectors that a decoder reads."""

    codes: Tensor  # [1, codebook, D] rows of length 1

    def __init__(self, sizes: ReleaseSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.x_embedder = PatchEmbedder(sizes.latent_channels, sizes.image_width, sizes.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.encoder_grid**2, sizes.image_width), requires_grad=False)
        self.query_tokens = nn.Parameter(torch.randn(1, sizes.n_tokens, sizes.query_width) * 0.02)
        self.blocks = nn.ModuleList(DualBlock(sizes) for _ in range(sizes.n_encoder_blocks))
        self.quantizer = nn.ModuleDict({"project_in": nn.Linear(sizes.query_width, sizes.code_dim)})
        self.final_layer_norm3 = nn.LayerNorm(sizes.code_dim, eps=1e-6)
        self.register_buffer("codes", F.normalize(torch.randn(1, sizes.codebook_size, sizes.code_dim), dim=-1))

    def forward(self, latents: Tensor) -> Tensor:
        """[B, K] int64 in index order, the codes nearest by cosine, from latents [B, C, H, W]."""
        image = self.x_embedder(latents) + middle(self.pos_embed, self.sizes.side)
        queries = self.query_tokens.expand(len(latents), -1, -1)
        positions = token_positions(self.sizes.n_tokens, latents.device)
        for block in self.blocks:
            image, queries = block(image, queries, positions)
        directions = F.normalize(self.quantizer["project_in"](queries), dim=-1)
        return (directions @ self.codes[0].T).argmax(dim=-1)

    def look_up(self, indexes: Tensor) -> Tensor:
        """[B, K, D] the normalised code vectors of indexes [B, K]."""
        return self.final_layer_norm3(self.codes[0][indexes])
