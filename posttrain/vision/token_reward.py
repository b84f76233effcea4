"""Grades the visual tokens that a policy has sampled: they are drawn, and the picture is graded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from posttrain.vision.image_reward import ImageGrade, grade_images, grade_scene
from posttrain.vision.prompts import ImagePrompt
from posttrain.vision.visual_text import VisualIds
from posttrain.vision.world import World


class PictureTokens(Protocol):
    """What of a visual tokenizer is needed to draw what a policy writes."""

    @property
    def world(self) -> World: ...

    @property
    def n_tokens(self) -> int: ...

    @property
    def codebook_size(self) -> int: ...

    def decode(self, ids: Tensor) -> Tensor: ...


def grade_tokens(
    tokenizer: PictureTokens,
    visual_ids: VisualIds,
    prompts: Sequence[ImagePrompt],
    completions: Sequence[Sequence[int]],
    *,
    device: torch.device,
) -> list[ImageGrade]:
    """One grade per completion, the sampled token ids without the prompt; `device` is the tokenizer's.

    A completion that is not exactly K visual tokens draws nothing, and no check of an empty picture is passed.
    """
    grades = [grade_scene(tokenizer.world, prompt, ()) for prompt in prompts]
    drawn = [i for i, ids in enumerate(completions) if is_picture(tokenizer, visual_ids, ids)]
    if drawn:
        token_ids = torch.tensor([completions[i] for i in drawn], device=device)
        # A policy that has settled writes many pictures twice; drawing is the dearest part of a grade.
        distinct, place = torch.unique(token_ids, dim=0, return_inverse=True)
        images = tokenizer.decode(visual_ids.to_codes(distinct))[place]
        found = grade_images(tokenizer.world, [prompts[i] for i in drawn], images)
        for i, grade in zip(drawn, found, strict=True):
            grades[i] = grade
    return grades


def is_picture(tokenizer: PictureTokens, visual_ids: VisualIds, ids: Sequence[int]) -> bool:
    """Whether these token ids are exactly K visual tokens."""
    end = visual_ids.offset + visual_ids.n_codes
    return len(ids) == tokenizer.n_tokens and all(visual_ids.offset <= i < end for i in ids)


def require_codes(tokenizer: PictureTokens, visual_ids: VisualIds, policy: str) -> None:
    """Raises ValueError when a policy's vocabulary has other visual codes than the tokenizer draws."""
    if visual_ids.n_codes != tokenizer.codebook_size:
        raise ValueError(
            f"the policy {policy} writes {visual_ids.n_codes} visual codes, the visual tokenizer draws "
            f"{tokenizer.codebook_size}: was the policy made for another tokenizer?"
        )
