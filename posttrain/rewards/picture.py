"""Grades answers that are pictures: visual tokens as text, drawn by their tokenizer and held against the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from posttrain.schema import Grade, Problem

PICTURE_PREFIX = "picture:"  # of a grader; after it stands the folder of the visual tokenizer
_CODE = re.compile(r"<v(\d+)>")
_MOST_DIGITS = 9  # of a code; model text may hold any number


def grade_pictures(pairs: Sequence[tuple[Problem, str]]) -> list[Grade]:
    """CORRECT where every check of the picture is passed, UNPARSED where the text is not the tokens of one picture.

    A problem's answer is the text of its prompt in the tokenizer's world. Raises FileNotFoundError for a grader whose
    folder holds no visual tokenizer, and ValueError for a prompt that its world does not know.
    """
    grades: dict[int, Grade] = {}
    for grader in dict.fromkeys(problem.grader for problem, _ in pairs):
        places = [i for i, (problem, _) in enumerate(pairs) if problem.grader == grader]
        folder = Path(grader.removeprefix(PICTURE_PREFIX))
        grades |= zip(places, _grades_by(folder, [pairs[i] for i in places]), strict=True)
    return [grades[i] for i in range(len(pairs))]


def picture_codes(text: str) -> list[int] | None:
    """The visual codes of "<v3> <v17> ...", spaces or none between them; None where anything else stands there."""
    codes = _CODE.findall(text)
    if not codes or _CODE.sub("", text).strip() or max(map(len, codes)) > _MOST_DIGITS:
        return None
    return [int(code) for code in codes]


def _grades_by(folder: Path, pairs: Sequence[tuple[Problem, str]]) -> list[Grade]:
    import torch

    from posttrain.vision.prompts import prompt_of
    from posttrain.vision.token_reward import grade_tokens, is_picture
    from posttrain.vision.visual_text import VisualIds

    tokenizer = _tokenizer(folder)
    codes = VisualIds(bov=-1, offset=0, n_codes=tokenizer.codebook_size)  # the text holds codes, not token ids
    prompts = [prompt_of(tokenizer.world, problem.answer) for problem, _ in pairs]
    written = [picture_codes(text) or [] for _, text in pairs]
    graded = grade_tokens(tokenizer, codes, prompts, written, device=torch.device("cpu"))
    is_drawn = [is_picture(tokenizer, codes, own) for own in written]
    return [
        Grade.UNPARSED if not drawn else Grade.CORRECT if grade.strict else Grade.WRONG
        for drawn, grade in zip(is_drawn, graded, strict=True)
    ]


@cache
def _tokenizer(folder: Path) -> Any:  # VisualTokenizer, of a module that loads torch
    from posttrain.vision.tokenizer import load_visual_tokenizer

    return load_visual_tokenizer(folder)
