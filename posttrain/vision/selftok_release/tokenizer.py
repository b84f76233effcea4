"""The published Selftok tokenizer behind the interface of this library's visual tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from posttrain.vision.selftok_release.decoders import FlowDecoder, Renderer, sample_flow
from posttrain.vision.selftok_release.latents import LatentCodec, SD3Latents
from posttrain.vision.selftok_release.load import ReleasedNetworks, load_networks
from posttrain.vision.token_schedule import TokenOrder

PIXELS_PER_LATENT = 8
ORDER = TokenOrder.REVERSED


class ReleasedSelftok(nn.Module):
    """Images to K tokens in AR order, and back by the renderer or by the flow.

    Inside, tokens have the release's INDEX order, in which index K − 1 is the coarse end; outside they are always in
    AR order, coarse first, which is the reverse.
    """

    def __init__(self, latents: LatentCodec, networks: ReleasedNetworks, *more: ReleasedNetworks) -> None:
        """Networks of the renderer's file, of the tokenizer's, or of both. Raises ValueError if their codes differ."""
        super().__init__()
        self.latents = latents
        self.encoder = networks.encoder
        self.renderer: Renderer | None = None
        self.flow: FlowDecoder | None = None
        for each in (networks, *more):
            if not torch.equal(each.encoder.codes, self.encoder.codes):
                raise ValueError(
                    "the files have different codebooks, so the tokens of one mean nothing to the other: take the "
                    "tokenizer and the renderer of the same variant"
                )
            if isinstance(each.decoder, Renderer):
                self.renderer = each.decoder
            else:
                self.flow = each.decoder
        self.eval()

    @property
    def n_tokens(self) -> int:
        return self.encoder.sizes.n_tokens

    @property
    def codebook_size(self) -> int:
        return self.encoder.sizes.codebook_size

    @property
    def image_px(self) -> int:
        return self.encoder.sizes.latent_px * PIXELS_PER_LATENT

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """[B, K] int64 in AR order, from images [B, 3, H, W] in [-1, 1]."""
        self._require_eval("encode")
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.image_px, self.image_px):
            raise ValueError(f"images are {tuple(images.shape)}, needed [B, 3, {self.image_px}, {self.image_px}]")
        return ORDER.to_ar(self.encoder(self.latents.encode(images).to(self.encoder.codes)))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] by the renderer, from the first 1 <= k <= K tokens [B, k] in AR order.

        The same tokens give the same image. The published renderer was trained with all K tokens, so of a shorter
        prefix it shows what it can; `decode_by_flow` was trained on prefixes.
        """
        self._require_eval("decode")
        if self.renderer is None:
            raise RuntimeError("decode needs the renderer: load renderer_*.safetensors too, or use decode_by_flow")
        return self.latents.decode(self.renderer(*self.look_up(ids))).clamp(-1, 1)

    @torch.no_grad()
    def decode_by_flow(self, ids: Tensor, *, generator: torch.Generator, n_steps: int = 50) -> Tensor:
        """[B, 3, H, W] in [-1, 1] by `n_steps` of the rectified flow, from a prefix of tokens [B, k] in AR order.

        The image depends on the noise too: as a reward's image, give each group of samples the same generator state.
        """
        self._require_eval("decode_by_flow")
        if self.flow is None:
            raise RuntimeError(
                "decode_by_flow needs the flow decoder: load tokenizer_*.safetensors too, or use decode"
            )
        flow, sizes = self.flow, self.encoder.sizes
        codes, is_written = self.look_up(ids)
        shape = (len(ids), sizes.latent_channels, sizes.latent_px, sizes.latent_px)
        latents = sample_flow(
            lambda x, t, is_token: flow(x, t, codes, is_token),
            torch.randn(shape, generator=generator, device=generator.device).to(codes),
            is_written,
            k_per_stage=sizes.k_per_stage,
            n_steps=n_steps,
        )
        return self.latents.decode(latents).clamp(-1, 1)

    def look_up(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(codes [B, K, D], is_token [B, K] bool) in index order, of a prefix [B, k] in AR order."""
        ids = ids.to(self.encoder.codes.device)
        n_hidden = self.n_tokens - ids.shape[-1]
        if ids.ndim != 2 or ids.shape[1] == 0 or n_hidden < 0:
            raise ValueError(f"ids are {tuple(ids.shape)}, needed [B, k] with 1 to {self.n_tokens} tokens")
        if ids.min() < 0 or ids.max() >= self.codebook_size:
            raise ValueError(
                f"ids reach from {int(ids.min())} to {int(ids.max())}, visual ids from 0 to {self.codebook_size - 1}: "
                "are they token ids of a policy? VisualWords.to_codes maps them"
            )
        indexes = ORDER.from_ar(nn.functional.pad(ids, (0, n_hidden)))
        is_token = (torch.arange(self.n_tokens, device=ids.device) >= n_hidden).expand(len(ids), -1)
        return self.encoder.look_up(indexes), is_token

    def _require_eval(self, what: str) -> None:
        if self.training:
            raise RuntimeError(f"{what} on a tokenizer in training mode: call tokenizer.eval() first")


def load_selftok_release(
    *files: Path,
    vae_folder: Path,
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
) -> ReleasedSelftok:
    """The published tokenizer from converted files of one variant: renderer_*, tokenizer_*, or both.

    Either has the encoder. The renderer's is enough to encode and decode; the tokenizer's adds `decode_by_flow`. Each
    has 2.2 billion numbers, 8.9 GB in float32.
    """
    if not files:
        raise ValueError("no file given: needed renderer_*.safetensors, tokenizer_*.safetensors, or both")
    latents = SD3Latents(vae_folder, dtype=vae_dtype, device=torch.device(device))
    return ReleasedSelftok(latents, *(load_networks(file, dtype=dtype, device=device) for file in files))
