"""Visual tokenizers: a picture as K tokens in the order in which a language model writes them, and back.

Three kinds share the quantiser, the renderer and their sizes: `selftok` (learned queries, coarse to fine), and the
spatial controls `cells` (one token per patch) and `shifted` (patches moved by half a patch, across the cells).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain.provenance import write_json
from posttrain.vision.encoder import QueryEncoder
from posttrain.vision.flow_decoder import FlowDecoder
from posttrain.vision.quantiser import CosineQuantiser
from posttrain.vision.renderer import Renderer
from posttrain.vision.spatial import PatchEncoder
from posttrain.vision.token_schedule import TokenOrder, TokenSchedule
from posttrain.vision.world import World

WEIGHTS, CONFIG = "visual_tokenizer.safetensors", "visual_tokenizer.json"


class TokenizerKind(StrEnum):
    SELFTOK = "selftok"
    CELLS = "cells"
    SHIFTED = "shifted"


@dataclass(frozen=True)
class TokenizerConfig:
    """The networks of a tokenizer; all that is needed to build it before its weights are read."""

    kind: TokenizerKind
    world: World
    schedule: TokenSchedule  # of the flow decoder; its n_tokens is K
    shift: float  # of the flow's noise levels
    codebook_size: int
    code_dim: int
    width: int
    n_heads: int
    n_encoder_blocks: int
    n_decoder_blocks: int
    patch_px: int
    ema_decay: float
    reset_ratio: float

    def __post_init__(self) -> None:
        if self.world.image_px % self.patch_px:
            raise ValueError(f"patch_px {self.patch_px} does not divide the image's {self.world.image_px} px")
        if self.width % (2 * self.n_heads):
            raise ValueError(f"width {self.width} with {self.n_heads} heads: width must be a multiple of 2 * n_heads")
        if self.kind is not TokenizerKind.SELFTOK and self.schedule.n_tokens != self.n_patches:
            raise ValueError(
                f"kind {self.kind} with {self.schedule.n_tokens} tokens: it has one token for each of the "
                f"{self.n_patches} patches of {self.patch_px} px"
            )

    @property
    def n_patches(self) -> int:
        return (self.world.image_px // self.patch_px) ** 2

    @property
    def order(self) -> TokenOrder:
        return TokenOrder.REVERSED if self.kind is TokenizerKind.SELFTOK else TokenOrder.RASTER

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON; `from_dict` reads it back."""
        return asdict(self) | {"world": self.world.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenizerConfig:
        schedule = data["schedule"]
        return cls(
            **{
                **data,
                "kind": TokenizerKind(data["kind"]),
                "world": World.from_dict(data["world"]),
                "schedule": TokenSchedule(
                    tuple(schedule["boundaries"]), tuple(schedule["k_per_stage"]), schedule["n_always"]
                ),
            }
        )


class VisualTokenizer(nn.Module):
    """Encoder, quantiser and renderer; and, of kind selftok, the flow decoder that trained the tokens.

    Outside this class and the networks under it, tokens are always in AR order.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.quantiser = CosineQuantiser(
            config.schedule.n_tokens,
            config.codebook_size,
            config.code_dim,
            decay=config.ema_decay,
            reset_ratio=config.reset_ratio,
        )
        self.flow = _decoder(config) if config.kind is TokenizerKind.SELFTOK else None
        self.renderer = Renderer(_decoder(config))

    @property
    def n_tokens(self) -> int:
        return self.config.schedule.n_tokens

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def world(self) -> World:
        return self.config.world

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """[B, K] int64 in AR order, from images [B, 3, H, W] in [-1, 1]. Raises RuntimeError in training mode."""
        self._require_eval("encode")
        size = (3, self.world.image_px, self.world.image_px)
        if images.ndim != 4 or tuple(images.shape[1:]) != size:
            raise ValueError(f"images are {tuple(images.shape)}, needed [B, {', '.join(map(str, size))}]")
        return self.config.order.to_ar(self.quantiser.nearest(self.encoder(images)))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] from the first k <= K tokens [B, k] in AR order; the rest is hidden.

        One pass of the renderer: the same tokens give the same image. Raises RuntimeError in training mode and
        ValueError on an id that is no code.
        """
        self._require_eval("decode")
        codes, is_visible = self.look_up(ids)
        return self.renderer(codes, is_visible).clamp(-1, 1)

    def look_up(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(codes [B, K, D], is_visible [B, K] bool) in index order, of a prefix [B, k] in AR order."""
        n_hidden = self.n_tokens - ids.shape[-1]
        if ids.ndim != 2 or n_hidden < 0:
            raise ValueError(f"ids are {tuple(ids.shape)}, needed [B, k] with k <= {self.n_tokens} tokens")
        padded = nn.functional.pad(ids, (0, n_hidden))
        is_written = torch.arange(self.n_tokens, device=ids.device) < ids.shape[1]
        order = self.config.order
        return self.quantiser.lookup(order.from_ar(padded)), order.from_ar(is_written).expand(len(ids), -1)

    def start_renderer(self) -> None:
        """Set the renderer to the flow decoder's weights, as its training starts; the canvas stays."""
        if self.flow is not None:
            weights = {name: value for name, value in self.flow.state_dict().items() if not name.startswith("embed.")}
            self.renderer.network.load_state_dict(copy.deepcopy(weights))

    def save(self, folder: Path) -> None:
        """Write the weights as safetensors and the configuration, World included, as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        write_json(folder / CONFIG, self.config.to_dict())

    def _require_eval(self, what: str) -> None:
        if self.training:
            raise RuntimeError(f"{what} on a tokenizer in training mode: call tokenizer.eval() first")


def load_visual_tokenizer(folder: Path) -> VisualTokenizer:
    """The tokenizer that `save` wrote, in eval mode. Raises FileNotFoundError where there is none."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}: is it the folder that `posttrain vision train` wrote?")
    tokenizer = VisualTokenizer(TokenizerConfig.from_dict(json.loads((folder / CONFIG).read_text())))
    tokenizer.load_state_dict(load_file(folder / WEIGHTS))
    return tokenizer.eval()


def _encoder(config: TokenizerConfig) -> nn.Module:
    if config.kind is TokenizerKind.SELFTOK:
        return QueryEncoder(
            n_tokens=config.schedule.n_tokens,
            n_patches=config.n_patches,
            patch_px=config.patch_px,
            code_dim=config.code_dim,
            width=config.width,
            n_heads=config.n_heads,
            n_blocks=config.n_encoder_blocks,
        )
    return PatchEncoder(
        patch_px=config.patch_px,
        code_dim=config.code_dim,
        width=config.width,
        n_blocks=config.n_encoder_blocks,
        shift_px=config.patch_px // 2 if config.kind is TokenizerKind.SHIFTED else 0,
    )


def _decoder(config: TokenizerConfig) -> FlowDecoder:
    return FlowDecoder(
        n_tokens=config.schedule.n_tokens,
        n_patches=config.n_patches,
        patch_px=config.patch_px,
        code_dim=config.code_dim,
        width=config.width,
        n_heads=config.n_heads,
        n_blocks=config.n_decoder_blocks,
    )
