"""A tokenizer of small, untrained networks: what holds for any weights is tested on it."""

from __future__ import annotations

import torch

from posttrain.vision.token_schedule import FIFTHS, TokenSchedule, all_visible
from posttrain.vision.tokenizer import TokenizerConfig, TokenizerKind, VisualTokenizer
from posttrain.vision.world import World


def tiny_tokenizer(kind: TokenizerKind = TokenizerKind.SELFTOK, *, seed: int = 0) -> VisualTokenizer:
    torch.manual_seed(seed)
    schedule = TokenSchedule(FIFTHS, (2, 2, 2, 2, 1)) if kind is TokenizerKind.SELFTOK else all_visible(9)
    config = TokenizerConfig(
        kind=kind,
        world=World(),
        schedule=schedule,
        shift=4.0,
        codebook_size=32,
        code_dim=8,
        width=32,
        n_heads=4,
        n_encoder_blocks=2,
        n_decoder_blocks=2,
        patch_px=4,
        ema_decay=0.97,
        reset_ratio=0.1,
    )
    return VisualTokenizer(config).eval()
