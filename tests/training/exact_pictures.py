"""A visual tokenizer without networks: one token per cell, the code of what is in it; it draws exactly that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.vision.detector import detect, scenes_of
from posttrain.vision.token_reward import PictureTokens
from posttrain.vision.visual_text import build_text_tokenizer
from posttrain.vision.world import Scene, Thing, World, render

SMALL_WORLD = World(n_cells=2, shapes=("square", "ring"), colours=("red", "blue"))


@dataclass(frozen=True)
class ExactPictures:
    """Code 0 is an empty cell, 1 + s * n_colours + c a thing; the cells follow in rows."""

    world: World = SMALL_WORLD

    @property
    def n_tokens(self) -> int:
        return self.world.n_cells**2

    @property
    def codebook_size(self) -> int:
        return 1 + len(self.world.shapes) * len(self.world.colours)

    def encode(self, images: Tensor) -> Tensor:
        codes = torch.zeros(len(images), self.n_tokens, dtype=torch.int64)
        for row, scene in zip(codes, scenes_of(detect(self.world, images)), strict=True):
            for thing in scene:
                row[thing.row * self.world.n_cells + thing.column] = self.code(thing.shape, thing.colour)
        return codes

    def decode(self, ids: Tensor) -> Tensor:
        return render(self.world, [self.scene(row) for row in ids.tolist()])

    def code(self, shape: int, colour: int) -> int:
        return 1 + shape * len(self.world.colours) + colour

    def scene(self, codes: Sequence[int]) -> Scene:
        cells = product(range(self.world.n_cells), repeat=2)
        return tuple(
            Thing(*divmod(code - 1, len(self.world.colours)), *cell)
            for code, cell in zip(codes, cells, strict=True)
            if code
        )


def write_picture_policy(folder: Path, pictures: PictureTokens, *, hidden_size: int = 32) -> Path:
    """A policy of random weights over the grammar's words and these pictures' codes, with its tokenizer."""
    tokenizer = build_text_tokenizer(pictures.world, pictures.codebook_size)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
