"""Pictures as answers: text of visual codes is drawn and held against its problem's prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posttrain.data.picture_problems import picture_problems
from posttrain.rewards import picture
from posttrain.rewards.final_number import grade_number
from posttrain.rewards.grade import extracted_answer, grade, grade_all
from posttrain.rewards.picture import grade_pictures, picture_codes
from posttrain.rewards.pool import GradingPool
from posttrain.schema import Grade, Problem
from posttrain.vision.image_reward import grade_images
from posttrain.vision.prompts import prompt_of
from tests.training.exact_pictures import SMALL_WORLD, ExactPictures
from tests.vision.tiny_tokenizer import tiny_tokenizer

NUMBER = Problem(where="row 1", task_id="1", prompt="1+1=", answer="2", grader="final_number")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> ExactPictures:
    """In place of a folder's tokenizer one that draws exactly what its codes say."""
    pictures = ExactPictures()
    monkeypatch.setattr(picture, "_tokenizer", lambda folder: pictures)
    return pictures


def problem(text: str) -> Problem:
    return Problem(where=text, task_id=text, prompt=f"{text} <bov>", answer=text, grader="picture:anywhere")


def test_picture_is_correct_when_every_check_is_passed_and_wrong_when_one_is_not(exact: ExactPictures) -> None:
    red_square, red_ring = exact.code(0, 0), exact.code(1, 0)  # shapes square, ring; colours red, blue
    texts = [
        f"<v0> <v{red_square}> <v0> <v0>",  # one red square
        f"<v0> <v{red_square}> <v{red_square}> <v0>",  # two of them
        f"<v0> <v{red_ring}> <v0> <v0>",  # another shape
        f"<v{red_square}> <v{red_ring}> <v0> <v0>",  # something else beside it
    ]
    grades = grade_pictures([(problem("a red square"), text) for text in texts])
    assert grades == [Grade.CORRECT, Grade.WRONG, Grade.WRONG, Grade.WRONG]
    assert grade(problem("two red squares"), texts[1]) is Grade.CORRECT
    assert grade(problem("a red square left of a red ring"), texts[3]) is Grade.CORRECT
    assert grade(problem("a red ring left of a red square"), texts[3]) is Grade.WRONG


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<v1> <v0> <v0>",  # a token short
        "<v1> <v0> <v0> <v0> <v0>",
        "<v1> <v0> <v0> <v5>",  # codes run from 0 to 4
        "red <v1> <v0> <v0> <v0>",
        "<v1> <v0> <v0> <v" + "9" * 5000 + ">",
        "<v-1> <v0> <v0> <v0>",
    ],
)
def test_what_is_not_one_picture_is_unparsed(exact: ExactPictures, text: str) -> None:
    assert grade(problem("a red square"), text) is Grade.UNPARSED


@pytest.mark.parametrize("text", ["<v3><v17>", "<v3> <v17>", " <v3>\n<v17> "])
def test_codes_are_read_with_any_space_between_them(text: str) -> None:
    assert picture_codes(text) == [3, 17]


def test_pictures_and_numbers_are_graded_in_their_order(exact: ExactPictures) -> None:
    right, wrong = "<v1> <v0> <v0> <v0>", "<v0> <v0> <v0> <v0>"
    pairs = [
        (problem("a red square"), right),
        (NUMBER, "#### 2"),
        (problem("a red square"), wrong),
        (NUMBER, "#### 3"),
    ]
    with GradingPool(n_workers=1) as pool:
        grades = grade_all(pairs, pool)
    assert grades == [Grade.CORRECT, grade_number("2", "2"), Grade.WRONG, Grade.WRONG]


def test_grades_of_a_saved_tokenizer_are_those_of_its_decoded_pictures(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer().eval()
    tokenizer.save(tmp_path)
    codes = torch.randint(
        tokenizer.codebook_size, (40, tokenizer.n_tokens), generator=torch.Generator().manual_seed(0)
    )
    asked = list(picture_problems(tokenizer.world, "train", grader=f"picture:{tmp_path}"))[:40]
    texts = [" ".join(f"<v{code}>" for code in row) for row in codes.tolist()]
    images = tokenizer.decode(codes)
    prompts = [prompt_of(tokenizer.world, one.answer) for one in asked]
    expected = [
        Grade.CORRECT if graded.strict else Grade.WRONG for graded in grade_images(tokenizer.world, prompts, images)
    ]
    assert grade_pictures(list(zip(asked, texts, strict=True))) == expected


def test_folder_without_a_tokenizer_and_unknown_prompts_are_refused_by_name(
    tmp_path: Path, exact: ExactPictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="'a pink square' is no prompt of this world; the nearest is"):
        grade(problem("a pink square"), "<v0> <v0> <v0> <v0>")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="is it the folder that `posttrain vision train` wrote"):
        grade(replace(problem("a red square"), grader=f"picture:{tmp_path}"), "<v0> <v0> <v0> <v0>")


def test_equal_pictures_vote_together(exact: ExactPictures) -> None:
    assert extracted_answer(problem("a red square"), "<v1> <v0> <v0> <v0>") == "<v1> <v0> <v0> <v0>"


def test_problems_carry_family_and_split_and_every_prompt_once() -> None:
    by_split = {
        split: list(picture_problems(SMALL_WORLD, split, grader="picture:x")) for split in ("train", "held_out")
    }
    texts = [one.answer for own in by_split.values() for one in own]
    assert len(set(texts)) == len(texts) and texts
    for split, own in by_split.items():
        for one in own:
            assert dict(one.tags)["split"] == split
            assert dict(one.tags)["family"] == prompt_of(SMALL_WORLD, one.answer).family.value
            assert one.prompt == f"{one.answer} <bov>"
