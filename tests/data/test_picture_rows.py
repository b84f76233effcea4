"""Rows to imitate: the tokens are those of a picture that is true of the prompt, unless it is corrupted on purpose."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from posttrain.data.audit import prepare
from posttrain.data.picture_rows import PictureRowsConfig, picture_rows, write_picture_rows
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import OnBadRow, read_rows
from posttrain.models.picture_policy import PicturePolicyConfig, write_picture_policy
from posttrain.pretrained import load_tokenizer
from posttrain.schema import TrajectoryRow
from posttrain.vision.image_reward import grade_images
from posttrain.vision.prompts import Family, prompt_of, split_prompts
from posttrain.vision.tokenizer import VisualTokenizer
from tests.training.exact_pictures import SMALL_WORLD, ExactPictures
from tests.vision.tiny_tokenizer import tiny_tokenizer


def rows_of(n_rows: int, **changes: float) -> list[TrajectoryRow]:
    pictures: VisualTokenizer = ExactPictures()  # type: ignore[assignment]  # it encodes exactly what is drawn
    config = PictureRowsConfig(visual_tokenizer=Path(), output=Path(), n_rows=n_rows, **changes)  # type: ignore[arg-type]
    return list(picture_rows(pictures, config))


def is_true(row: TrajectoryRow) -> bool:
    """Whether the row's own tokens, drawn, pass every check of its prompt."""
    assert isinstance(row.prompt, str) and row.completion is not None
    codes = torch.tensor([[int(code.strip("<v>")) for code in row.completion.split()]])
    prompt = prompt_of(SMALL_WORLD, row.prompt.removesuffix(" <bov>"))
    return bool(grade_images(SMALL_WORLD, [prompt], ExactPictures().decode(codes))[0].strict)


def test_every_picture_is_true_of_its_prompt_and_no_prompt_is_held_out() -> None:
    rows = rows_of(300)
    _, held_out = split_prompts(SMALL_WORLD)
    assert all(is_true(row) for row in rows)
    assert not {row.prompt for row in rows} & {f"{prompt.text} <bov>" for prompt in held_out}
    families = Counter(prompt_of(SMALL_WORLD, str(row.prompt).removesuffix(" <bov>")).family for row in rows)
    assert families == dict.fromkeys(Family, 50)


def test_corrupted_captions_are_wrong_as_often_as_a_random_relation_or_number_is() -> None:
    rows = rows_of(3000, corrupted_share=1.0)
    by_family = {
        family: [row for row in rows if row.task_id.split(": ")[1] and family_of(row) is family] for family in Family
    }
    for family in (Family.SINGLE, Family.TWO, Family.COLOURS, Family.ATTRIBUTION):
        assert all(is_true(row) for row in by_family[family])  # nothing to corrupt
    # One relation of 4, one number of 3 is the true one. 500 rows: three standard deviations are 0.058 and 0.063.
    assert share_true(by_family[Family.POSITION]) == pytest.approx(1 / 4, abs=0.06)
    assert share_true(by_family[Family.COUNTING]) == pytest.approx(1 / 3, abs=0.065)


def family_of(row: TrajectoryRow) -> Family:
    return prompt_of(SMALL_WORLD, row.task_id.partition(": ")[2]).family


def share_true(rows: list[TrajectoryRow]) -> float:
    return sum(map(is_true, rows)) / len(rows)


def test_share_without_a_prompt_is_as_asked() -> None:
    rows = rows_of(2000, unconditional_share=0.1)
    assert sum(row.prompt == "<bov>" for row in rows) / 2000 == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("changes", [{"n_rows": 0}, {"corrupted_share": 1.5}, {"unconditional_share": -0.1}])
def test_shares_and_numbers_out_of_range_are_refused(changes: dict[str, float]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name} is"):
        PictureRowsConfig(visual_tokenizer=Path(), output=Path(), **changes)  # type: ignore[arg-type]


def test_policy_reads_the_written_rows_as_prompt_words_and_k_visual_tokens(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    rows, policy = tmp_path / "rows.jsonl", tmp_path / "policy"
    write_picture_rows(PictureRowsConfig(visual_tokenizer=tmp_path / "tokenizer", output=rows, n_rows=12))
    write_picture_policy(PicturePolicyConfig(visual_tokenizer=tmp_path / "tokenizer", output=policy))
    prepared = prepare(
        read_rows(str(rows), parse_trajectory, on_bad_row=OnBadRow.ERROR),
        load_tokenizer(policy),
        max_length=32,
        step_delimiters=(),
        max_dropped_fraction=0.0,
    )
    vocabulary = load_tokenizer(policy).get_vocab()
    for row, encoded in zip(map(json.loads, rows.read_text().splitlines()), prepared.encoded, strict=True):
        written = [*row["prompt"].split(), *row["completion"].split()]
        assert list(encoded.input_ids) == [vocabulary[word] for word in written]  # no EOS, no unknown
        assert sum(encoded.is_action) == tokenizer.n_tokens
