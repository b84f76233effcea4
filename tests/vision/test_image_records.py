"""Generated pictures come back from their file as they were written, and faults in it are named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("PIL", reason="pictures are stored as PNG by Pillow: pip install 'posttrain[vision]'")

from posttrain.vision.image_records import (
    ImageRecord,
    ImageRecordError,
    image_of,
    png_of,
    read_image_records,
    write_image_records,
)
from posttrain.vision.image_reward import grade_images
from posttrain.vision.prompts import Family, prompt_of
from posttrain.vision.world import Thing, World, render

WORLD = World()


@pytest.fixture()
def record() -> ImageRecord:
    images = render(WORLD, [(Thing(1, 0, 2, 1), Thing(0, 2, 0, 0))])  # a red ring, and a blue square too much
    (grade,) = grade_images(WORLD, [prompt_of(WORLD, "a red ring")], images)
    return ImageRecord(
        prompt="a red ring",
        family=Family.COLOURS,
        is_held_out=False,
        method="oreo/greedy",
        seed=3,
        tokens=(7, 0, 255),
        grade=grade,
        png=png_of(images[0]),
        values=(0.25, 0.5, 0.75),
        advantages=(0.25, 0.25, -0.25),
    )


def test_records_come_back_from_their_file(record: ImageRecord, tmp_path: Path) -> None:
    bare = dataclasses.replace(record, values=None, advantages=None, is_held_out=True)
    write_image_records(tmp_path / "run" / "images.jsonl", [record, bare])
    assert read_image_records(tmp_path / "run" / "images.jsonl") == (record, bare)


def test_a_line_says_what_a_reader_looks_for(record: ImageRecord) -> None:
    row = record.to_json()
    assert row["checks"] == [{"name": "a red ring", "is_passed": True}, {"name": "nothing else", "is_passed": False}]
    assert (row["strict"], row["mean"]) == (0.0, 0.5)
    assert row["tokens"] == [7, 0, 255]


def test_a_picture_comes_back_from_its_png(record: ImageRecord) -> None:
    assert_close(image_of(record.png), render(WORLD, [(Thing(1, 0, 2, 1), Thing(0, 2, 0, 0))])[0], rtol=0, atol=0)
    # 256 levels over a range of 2: half a level is 1/255. What lies beyond the range is cut off.
    smooth = torch.linspace(-1.2, 1.2, 3 * 12 * 12).view(3, 12, 12)
    assert_close(image_of(png_of(smooth)), smooth.clamp(-1, 1), rtol=0, atol=1 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strict": 1.0}, "strict 1.0 and mean 0.5: the checks give 0.0 and 0.5"),
        ({"seed": "3"}, "seed is '3', expected int"),
        ({"is_held_out": 0}, "is_held_out is 0, expected bool"),
        ({"tokens": [7, 0.5, 255]}, "expected whole numbers"),
        ({"values": [0.5]}, "needed one finite number for each token"),
        ({"values": [0.5, 0.5, float("nan")]}, "needed one finite number for each token"),
        ({"family": "relation"}, "'relation' is not a valid Family"),
        ({"png": "no base64!"}, "base64"),
        ({"reward": 1.0}, r"unknown fields \['reward'\]"),
    ],
)
def test_a_faulty_line_is_named(record: ImageRecord, tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "images.jsonl"
    lines = [json.dumps(record.to_json()), json.dumps(record.to_json() | change)]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ImageRecordError, match=f"images.jsonl:2: .*{message}"):
        read_image_records(path)


def test_a_missing_field_is_named(record: ImageRecord) -> None:
    row = record.to_json()
    del row["png"], row["seed"]
    with pytest.raises(ValueError, match=r"missing fields \['seed', 'png'\]"):
        ImageRecord.from_json(row)
