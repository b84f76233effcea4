"""The transformer of two streams, Stable Diffusion 3's MMDiT with tokens in place of text, under both decoders."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from posttrain.vision.selftok_release.blocks import (
    FeedForward,
    TimeEmbedder,
    attend,
    modulation,
    normalise,
    token_positions,
)
from posttrain.vision.selftok_release.layout import FIRST_POSITION, POSITION_STEP, ReleaseSizes


class StreamAttention(nn.Module):
    """A stream's own projections of the joint attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)


class Stream(nn.Module):
    """One stream's half of a joint block. The condition [.., 1 or N, width] is what modulates its normalisations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = StreamAttention(width)
        self.mlp = FeedForward(width)
        self.adaLN_modulation = modulation(width, 6)

    def open(self, x: Tensor, condition: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(queries, keys and values [B, N, 3 width], the parts of the modulation that `close` needs)."""
        shift, scale, *rest = self.adaLN_modulation(condition).chunk(6, dim=-1)
        return self.attn.qkv(normalise(x, shift, scale)), tuple(rest)

    def close(self, x: Tensor, read: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        gate, mlp_shift, mlp_scale, mlp_gate = rest
        x = x + gate * self.attn.proj(read)
        return x + mlp_gate * self.mlp(normalise(x, mlp_shift, mlp_scale))


class TokenStream(Stream):
    """The token half: modulated by each token's position, never by the time."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.t_embedder = TimeEmbedder(width)


class LastTokenStream(nn.Module):
    """The token half of the last block, read by the image once more and then dropped.

    It is modulated by the TIME, as every stream of SD3 is; in the earlier blocks Selftok put positions instead.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width)})
        self.adaLN_modulation = modulation(width, 2)

    def open(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.attn["qkv"](normalise(x, shift, scale))


def read_jointly(token_qkv: Tensor, image_qkv: Tensor, is_visible: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    """What tokens [B, K, width] and image [B, P, width] read of both; `is_visible` [B, 1, 1 or K + P, K + P]."""
    q, k, v = torch.cat([token_qkv, image_qkv], dim=1).chunk(3, dim=-1)
    n_tokens = token_qkv.shape[1]
    read = attend(q, k, v, n_heads, is_visible)
    return read[:, :n_tokens], read[:, n_tokens:]


class JointBlock(nn.Module):
    """Both streams read both streams, then go on by themselves."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.context_block, self.x_block = TokenStream(width), Stream(width)

    def forward(
        self, tokens: Tensor, image: Tensor, time: Tensor, positions: Tensor, is_visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        token_qkv, token_rest = self.context_block.open(tokens, self.context_block.t_embedder(positions))
        image_qkv, image_rest = self.x_block.open(image, time)
        token_read, image_read = read_jointly(token_qkv, image_qkv, is_visible, self.n_heads)
        return (
            self.context_block.close(tokens, token_read, token_rest),
            self.x_block.close(image, image_read, image_rest),
        )


class LastJointBlock(nn.Module):
    """The last block: only the image goes on."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.context_block, self.x_block = LastTokenStream(width), Stream(width)

    def forward(self, tokens: Tensor, image: Tensor, time: Tensor, is_visible: Tensor) -> Tensor:
        image_qkv, image_rest = self.x_block.open(image, time)
        token_qkv = self.context_block.open(tokens, time)
        _, image_read = read_jointly(token_qkv, image_qkv, is_visible, self.n_heads)
        return self.x_block.close(image, image_read, image_rest)


class FinalLayer(nn.Module):
    """From the image stream to the pixels of each patch."""

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, n_out)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(time).chunk(2, dim=-1)
        return self.linear(normalise(image, shift, scale))


class JointTransformer(nn.Module):
    """What the flow decoder and the renderer share: all but how the image stream starts and what tokens may read."""

    context_pos_embed: Tensor  # [1, K, width]

    def __init__(self, sizes: ReleaseSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, n_heads = sizes.decoder_width, sizes.decoder_heads
        self.t_embedder = TimeEmbedder(width)
        self.context_embedder = nn.Linear(sizes.code_dim, width)
        self.register_buffer("context_pos_embed", position_table(sizes.n_tokens, width))
        self.joint_blocks = nn.ModuleList(JointBlock(width, n_heads) for _ in range(sizes.n_decoder_blocks - 1))
        self.joint_blocks.append(LastJointBlock(width, n_heads))
        self.final_layer = FinalLayer(width, sizes.patch**2 * sizes.latent_channels)

    def transform(self, image: Tensor, times: Tensor, codes: Tensor, is_token: Tensor, is_visible: Tensor) -> Tensor:
        """[B, C, H, W] from the image stream [B, P, width], times [B] in thousandths and codes [B, K, D].

        `is_token` [B, K] says which tokens there are. The others are zero and, as `is_visible` must say too, no key.
        """
        codes = torch.where(is_token.unsqueeze(-1), codes, 0.0)
        tokens = self.context_embedder(codes.to(image.dtype)) + self.context_pos_embed
        time = self.t_embedder(times).unsqueeze(1)
        positions = token_positions(self.sizes.n_tokens, codes.device)
        *blocks, last = self.joint_blocks
        for block in blocks:
            tokens, image = block(tokens, image, time, positions, is_visible)
        return self._unpatch(self.final_layer(last(tokens, image, time, is_visible), time))

    def _unpatch(self, patches: Tensor) -> Tensor:
        side, patch = self.sizes.side, self.sizes.patch
        pixels = patches.unflatten(1, (side, side)).unflatten(3, (patch, patch, self.sizes.latent_channels))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [B, C, row, row in, column, column in]


def position_table(n_tokens: int, width: int) -> Tensor:
    """[1, K, width] sines, then cosines, of the tokens' positions: sin(p / 10000^(2 i / width)), i < width / 2."""
    exponents = torch.arange(width // 2, dtype=torch.float64) / (width / 2)
    positions = FIRST_POSITION + POSITION_STEP * torch.arange(n_tokens, dtype=torch.float64)
    angles = positions.unsqueeze(1) * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1).unsqueeze(0).float()
