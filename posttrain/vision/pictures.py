"""Drawn pictures to train and to judge tokenizers on: prompts taken evenly from the families, one scene for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.vision.prompts import Family, ImagePrompt, draw_scene
from posttrain.vision.world import World, render


def draw_pictures(
    world: World, prompts: Sequence[ImagePrompt], n: int, generator: torch.Generator
) -> tuple[list[ImagePrompt], Tensor]:
    """`n` prompts, the families in turn, and a picture [n, 3, H, W] that is true of each."""
    by_family = [found for family in Family if (found := [p for p in prompts if p.family is family])]
    chosen: list[ImagePrompt] = []
    for index in range(n):
        family = by_family[index % len(by_family)]
        chosen.append(family[int(torch.randint(len(family), (), generator=generator))])
    return chosen, render(world, [draw_scene(prompt, world, generator) for prompt in chosen])
