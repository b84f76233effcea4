"""Picture files to rows of tokens and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from posttrain.cli import main
from posttrain.vision.pictures import draw_pictures
from posttrain.vision.prompts import Family, all_prompts
from posttrain.vision.world import World
from tests.vision.tiny_tokenizer import tiny_tokenizer

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer and three pictures of its world."""
    tokenizer = tiny_tokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    _, images = draw_pictures(World(), all_prompts(World()), 3, torch.Generator().manual_seed(0))
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(images):
        pixels = ((image + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path


def run(folder: Path, verb: str, **options: object) -> int:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return main(["vision", verb, "--tokenizer", str(folder / "tokenizer"), *words])


def test_picture_files_become_rows_of_their_tokens(folder: Path):
    assert run(folder, "tokenize", images=folder / "pictures", output=folder / "rows.jsonl") == 0
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    _, images = draw_pictures(World(), all_prompts(World()), 3, torch.Generator().manual_seed(0))
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert [row["tokens"] for row in rows] == tiny_tokenizer().encode(images).tolist()


@pytest.mark.parametrize("n_tokens", [2, 9])
def test_rows_of_tokens_become_the_pictures_of_their_first_tokens(folder: Path, n_tokens: int):
    run(folder, "tokenize", images=folder / "pictures", output=folder / "rows.jsonl")
    assert run(folder, "detokenize", tokens=folder / "rows.jsonl", output_dir=folder / "out", n_tokens=n_tokens) == 0
    row = json.loads((folder / "rows.jsonl").read_text().splitlines()[1])
    expected = tiny_tokenizer().decode(torch.tensor([row["tokens"][:n_tokens]]))[0]
    with Image.open(folder / "out" / "1.png") as image:
        pixels = torch.tensor(list(image.getdata())).view(12, 12, 3).permute(2, 0, 1)
    assert pixels.equal(((expected + 1) * 127.5).round().long())


def test_row_without_tokens_is_named_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "rows.jsonl").write_text('{"image": "a.png", "tokens": []}\n{"image": "b.png"}\n')
    assert run(folder, "detokenize", tokens=folder / "rows.jsonl", output_dir=folder / "out") == 2
    assert "rows.jsonl:2: expected an object with image and tokens" in capsys.readouterr().err


def test_measures_are_printed_and_written(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(folder, "eval", output=folder / "measures.json", n_pictures=12) == 0
    measures = json.loads((folder / "measures.json").read_text())
    assert f"{measures['prefix_mse_9']:10.4f}" in capsys.readouterr().out
    # Untrained renderers draw noise around 0: no picture keeps its prompt.
    assert measures["strict"] == 0.0


def test_no_family_is_left_out_of_drawn_pictures():
    prompts, _ = draw_pictures(World(), all_prompts(World()), 12, torch.Generator().manual_seed(0))
    assert [prompt.family for prompt in prompts] == [*Family, *Family]
