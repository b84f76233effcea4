"""Grades pictures against their prompts by program checks, as GenEval does (Ghosh et al. 2023), and against hacking.

The checks of a prompt: each wanted kind is there exactly as often as asked; the relation holds; there is nothing else.
GenEval itself does not count extra objects, so a picture full of everything can satisfy it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from posttrain.vision.detector import detect, find_clutter, scenes_of
from posttrain.vision.prompts import ImagePrompt, phrase
from posttrain.vision.world import Scene, World

NOTHING_ELSE = "nothing else"


@dataclass(frozen=True, slots=True)
class Check:
    name: str  # "three green crosses", "left of" or NOTHING_ELSE
    is_passed: bool


@dataclass(frozen=True, slots=True)
class ImageGrade:
    checks: tuple[Check, ...]

    @property
    def strict(self) -> float:
        """1 if every check is passed, else 0."""
        return float(all(check.is_passed for check in self.checks))

    @property
    def mean(self) -> float:
        """The share of passed checks."""
        return sum(check.is_passed for check in self.checks) / len(self.checks)


def grade_images(world: World, prompts: Sequence[ImagePrompt], images: Tensor) -> list[ImageGrade]:
    """One grade per image [B, 3, H, W], each against the prompt of the same index."""
    if len(prompts) != len(images):
        raise ValueError(f"{len(prompts)} prompts for {len(images)} images: give one prompt for each image")
    found = detect(world, images)
    has_clutter = find_clutter(world, images, found).any((1, 2)).tolist()
    return [grade_scene(world, *each) for each in zip(prompts, scenes_of(found), has_clutter, strict=True)]


def grade_scene(world: World, prompt: ImagePrompt, scene: Scene, has_clutter: bool) -> ImageGrade:
    """The grade of what was found in a picture: its things, and whether a cell holds something that is none.

    A relation holds if both kinds are there and every pair of them stands so. "Nothing else" fails on an empty scene,
    or a blank picture would pass one check of every prompt.
    """
    found = [[thing for thing in scene if wanted.matches(thing)] for wanted in prompt.wanted]
    checks = [
        Check(phrase(world, wanted), len(things) == wanted.count)
        for wanted, things in zip(prompt.wanted, found, strict=True)
    ]
    if prompt.relation is not None:
        pairs = list(product(*found))
        holds = bool(pairs) and all(prompt.relation.holds(*pair) for pair in pairs)
        checks.append(Check(prompt.relation.value, holds))
    n_asked = sum(min(len(things), wanted.count) for wanted, things in zip(prompt.wanted, found, strict=True))
    checks.append(Check(NOTHING_ELSE, bool(scene) and len(scene) == n_asked and not has_clutter))
    return ImageGrade(tuple(checks))
