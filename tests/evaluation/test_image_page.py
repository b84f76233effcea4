"""The page and the sheet show the pictures themselves, what each failed, and the worth of each token."""

from __future__ import annotations

import base64
import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest
from torch import Tensor, tensor
from torch.nn.functional import interpolate
from torch.testing import assert_close

pytest.importorskip("PIL", reason="pictures need Pillow: pip install 'posttrain[vision]'")

from posttrain.evaluation.contact_sheet import RIGHT, WRONG, contact_sheet
from posttrain.evaluation.image_page import ROW_HEIGHT, image_page
from posttrain.vision.image_records import ImageRecord, image_of, png_of
from posttrain.vision.image_reward import grade_images
from posttrain.vision.prompts import prompt_of
from posttrain.vision.world import Scene, Thing, World, render

WORLD = World()
RED_RING, BLUE_SQUARE = Thing(1, 0, 2, 1), Thing(0, 2, 0, 0)
VALUES, ADVANTAGES = (0.25, 0.5, 1.0), (0.25, 0.5, -1.0)
VOID = {"meta", "img", "rect", "line"}


def record_of(text: str, scene: Scene, method: str = "sft", **credit: tuple[float, ...] | None) -> ImageRecord:
    prompt = prompt_of(WORLD, text)
    images = render(WORLD, [scene])
    (grade,) = grade_images(WORLD, [prompt], images)
    return ImageRecord(text, prompt.family, False, method, 0, (7, 0, 255), grade, png_of(images[0]), **credit)


class Page(HTMLParser):
    """What a reader meets, in order; fails on a tag closed out of order or never."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.images, self.bars, self.sources, self.texts = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.images += [found] if tag == "img" else []
        self.bars += [found] if tag == "rect" else []
        self.sources += [found[name] for name in ("src", "href", "srcset") if name in found]
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "line"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() and self.open[-1] != "style" else []


def page_of(*records: ImageRecord) -> Page:
    return Page(image_page(records, title="Pictures", facts=[("world", "12x12 px")]))


def test_the_pictures_are_in_the_page_pixel_by_pixel_enlarged() -> None:
    shown = [record_of("a red ring", (RED_RING,)), record_of("a blue square", (BLUE_SQUARE,), "pg")]
    page = page_of(*shown)
    for found, record in zip(page.images, shown, strict=True):
        png = base64.b64decode(found["src"].removeprefix("data:image/png;base64,"))
        # 12 px at least 144 px wide: each becomes 12x12
        enlarged = interpolate(image_of(record.png)[None], scale_factor=12, mode="nearest")[0]
        assert_close(image_of(png), enlarged, rtol=0, atol=0)
        assert (found["width"], found["height"]) == ("144", "144")
        assert found["alt"] == f"Picture that {record.method} drew for: {record.prompt}"


def test_the_page_stands_alone() -> None:
    text = image_page([record_of("a red ring", (RED_RING,))], title="Pictures", facts=[])
    assert all(source.startswith(("data:", "#")) for source in Page(text).sources)
    assert "<script" not in text
    assert "url(" not in text


def test_every_check_is_told_as_passed_or_failed() -> None:
    page = page_of(record_of("a red ring", (RED_RING, BLUE_SQUARE)))
    assert [text for text in page.texts if "passed:" in text or "failed:" in text] == [
        "✓ passed: a red ring",
        "✗ failed: nothing else",
    ]


def test_the_table_counts_right_pictures_by_method_and_family() -> None:
    page = page_of(
        record_of("a red ring", (RED_RING,)),
        record_of("a red ring", (BLUE_SQUARE,)),
        record_of("a ring", (RED_RING,)),
        record_of("a red ring", (RED_RING,), "pg"),
    )
    start = page.texts.index("method")
    assert page.texts[start : start + 9] == [
        "method",
        "single",
        "colours",
        "sft",
        "1 of 1",
        "1 of 2",
        "pg",
        "-",
        "1 of 1",
    ]


def test_bars_are_as_high_as_their_numbers_in_the_order_of_generation() -> None:
    page = page_of(record_of("a red ring", (RED_RING,), values=VALUES, advantages=ADVANTAGES))
    heights = [float(bar["height"]) for bar in page.bars]
    # No value is negative, so 1 fills the row; advantages share it with negative ones, so |A| = 1 fills a half.
    assert heights == [ROW_HEIGHT * x for x in VALUES] + [ROW_HEIGHT / 2 * abs(x) for x in ADVANTAGES]
    assert [bar["class"] for bar in page.bars] == ["bar-value"] * 3 + ["bar-high", "bar-high", "bar-low"]
    left = [float(bar["x"]) for bar in page.bars]
    assert left[:3] == sorted(left[:3]) == left[3:]
    # A positive bar ends on the zero line, on which a negative one begins.
    high, low = page.bars[4], page.bars[5]
    assert float(high["y"]) + float(high["height"]) == pytest.approx(float(low["y"]))
    told = [text for text in page.texts if text.startswith("token ")]
    assert told[:3] == ["token 1: V = 0.2500", "token 2: V = 0.5000", "token 3: V = 1.0000"]
    assert told[3:] == ["token 1: A = 0.2500", "token 2: A = 0.5000", "token 3: A = -1.0000"]
    assert page.texts[-4:] == ["7", "0", "255", "code"]


def test_pictures_share_one_scale_of_bars() -> None:
    small = record_of("a red ring", (RED_RING,), values=(0.1, 0.1, 0.1))
    large = record_of("a red ring", (RED_RING,), "pg", values=(0.4, -0.2, 0.1))
    heights = [float(bar["height"]) for bar in page_of(small, large).bars]
    # One value of the page is negative, so .4 fills half a row in every picture.
    assert heights == pytest.approx([ROW_HEIGHT / 2 * abs(x) / 0.4 for x in (0.1, 0.1, 0.1, 0.4, 0.2, 0.1)], abs=0.006)


def test_without_credit_there_are_no_bars_and_no_word_of_them() -> None:
    page = page_of(record_of("a red ring", (RED_RING,)))
    assert page.bars == []
    assert not any("advantage" in text for text in page.texts)


def test_pictures_of_a_prompt_stand_under_it_and_held_out_prompts_are_marked() -> None:
    held_out = dataclasses.replace(record_of("two red rings", (RED_RING,)), is_held_out=True)
    page = page_of(record_of("a red ring", (RED_RING,)), held_out, record_of("a red ring", (RED_RING,), "pg"))
    order = [text for text in page.texts if text in ("two red rings (held out)", "a red ring") or "seed" in text]
    assert order == ["two red rings (held out)", "sft, seed 0", "a red ring", "sft, seed 0", "pg, seed 0"]


def test_text_of_records_is_escaped() -> None:
    method = "<b>&pg"
    text = image_page([record_of("a ring", (RED_RING,), method)], title="a < b", facts=[("f", "x > y")])
    assert "<b>" not in text
    assert {"a < b", "x > y", f"{method}, seed 0"} <= set(Page(text).texts)


def test_a_page_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        image_page([], title="Pictures", facts=[])


def test_a_contact_sheet_shows_every_picture_in_a_frame_of_its_grade(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="sheets need matplotlib: pip install 'posttrain[report]'")
    # In the middle, where no frame covers them
    right = record_of("a red ring", (Thing(1, 0, 1, 1),))
    wrong = record_of("a red ring", (Thing(0, 2, 1, 1),), "pg")
    path = contact_sheet(tmp_path / "sheet.png", [right, wrong, right], n_columns=2)
    pixels = (image_of(path.read_bytes()) + 1) * 127.5  # [3, H, W]
    top, bottom = pixels.tensor_split(2, dim=1)
    first, second = top.tensor_split(2, dim=2)
    third, empty = bottom.tensor_split(2, dim=2)

    def share(quarter: Tensor, colour: str) -> float:
        wanted = tensor([int(colour[i : i + 2], 16) for i in (1, 3, 5)]).view(3, 1, 1)
        return ((quarter - wanted).abs() < 3).all(0).float().mean().item()

    # A ring has 4 px and a square 9.
    assert share(second, "#0000ff") == pytest.approx(9 / 4 * share(first, "#ff0000"), rel=0.1)
    assert share(first, "#0000ff") == share(second, "#ff0000") == 0.0
    assert share(first, RIGHT) > 0.01 > share(first, WRONG)
    assert share(second, WRONG) > 0.01 > share(second, RIGHT)
    assert share(third, RIGHT) > 0.01
    assert share(empty, "#ffffff") == 1.0


def test_a_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet(tmp_path / "sheet.png", [], n_columns=3)
