"""Images to the latents of Stable Diffusion 3 and back, by its autoencoder in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

# x = (z − SHIFT) SCALE, as SD3 and the Selftok encoder want latents.
SHIFT, SCALE = 0.0609, 1.5305


class LatentCodec(Protocol):
    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, 16, H/8, W/8] of images [B, 3, H, W] in [-1, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents, about in [-1, 1], not clamped."""
        ...


class SD3Latents:
    """The mean of SD3's autoencoder, deterministic both ways; it runs in its own dtype, bfloat16 in the reference."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: torch.device) -> None:
        """Read `folder`, the `vae` folder of stable-diffusion-3-medium-diffusers: config.json and safetensors."""
        try:
            from diffusers import AutoencoderKL  # pyright: ignore[reportMissingImports] - an extra
        except ImportError as error:
            raise ImportError(
                "SD3's autoencoder needs diffusers, which is not installed: pip install 'posttrain[selftok]'"
            ) from error
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no config.json: give the `vae` folder inside stable-diffusion-3-medium-diffusers"
            )
        model = AutoencoderKL.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
        found = (model.config.shift_factor, model.config.scaling_factor)
        if found != (SHIFT, SCALE):
            raise ValueError(
                f"the autoencoder in {folder} shifts and scales latents by {found}, SD3's by {(SHIFT, SCALE)}: "
                "is it the one of another model?"
            )
        self.model = model.to(device).eval()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        mean = self.model.encode(images.to(self.model.device, self.model.dtype)).latent_dist.mode()
        return ((mean - SHIFT) * SCALE).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode((latents / SCALE + SHIFT).to(self.model.dtype)).sample.float()
