"""`posttrain vision tokenize | detokenize | eval`: pictures as files to rows of tokens, back, and what is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posttrain.provenance import write_json
from posttrain.vision.image_metrics import load_lpips
from posttrain.vision.pictures import draw_pictures
from posttrain.vision.prompts import split_prompts
from posttrain.vision.reconstruction import judge_tokenizer
from posttrain.vision.tokenizer import VisualTokenizer, load_visual_tokenizer


@dataclass(frozen=True, slots=True)
class TokenizeConfig:
    """Tokenize picture files."""

    tokenizer: Path = field(metadata={"help": "Folder that `posttrain vision train` wrote."})
    images: list[Path] = field(metadata={"help": "PNG files of the tokenizer's size, or folders of them."})
    output: Path = field(metadata={"help": "JSON lines to write: the file's name, and its tokens in AR order."})


@dataclass(frozen=True, slots=True)
class DetokenizeConfig:
    """Render rows of tokens as picture files."""

    tokenizer: Path = field(metadata={"help": "Folder that `posttrain vision train` wrote."})
    tokens: Path = field(metadata={"help": "JSON lines that `posttrain vision tokenize` wrote."})
    output_dir: Path = field(metadata={"help": "Folder for the PNG files."})
    n_tokens: int | None = field(
        default=None, metadata={"help": "Render the first so many tokens and hide the rest; null: all."}
    )


@dataclass(frozen=True, slots=True)
class VisionEvalConfig:
    """Measure what a tokenizer keeps of drawn pictures."""

    tokenizer: Path = field(metadata={"help": "Folder that `posttrain vision train` wrote."})
    output: Path | None = field(default=None, metadata={"help": "JSON file for the measures; null: print only."})
    n_pictures: int = field(default=512, metadata={"help": "Pictures drawn for the held-out prompts."})
    seed: int = field(default=1, metadata={"help": "Of the pictures."})
    is_lpips_wanted: bool = field(
        default=False, metadata={"help": "Add LPIPS; needs the package lpips and AlexNet's weights."}
    )


def tokenize_files(config: TokenizeConfig) -> Path:
    """Write {"image": name, "tokens": [K ids in AR order]} for every picture; returns the file."""
    tokenizer = load_visual_tokenizer(config.tokenizer)
    paths = [found for path in config.images for found in (sorted(path.glob("*.png")) if path.is_dir() else [path])]
    if not paths:
        raise ValueError(f"no .png files in {', '.join(map(str, config.images))}")
    config.output.parent.mkdir(parents=True, exist_ok=True)
    with config.output.open("w") as file:
        for path in paths:
            ids = tokenizer.encode(_read_png(path).unsqueeze(0))[0]
            file.write(json.dumps({"image": path.name, "tokens": ids.tolist()}) + "\n")
    print(f"{len(paths)} pictures of {tokenizer.n_tokens} tokens: {config.output}")
    return config.output


def detokenize_files(config: DetokenizeConfig) -> Path:
    """Write one PNG for each row; returns the folder."""
    tokenizer = load_visual_tokenizer(config.tokenizer)
    rows = [
        _read_row(line, where=f"{config.tokens}:{number}")
        for number, line in enumerate(config.tokens.read_text().splitlines(), start=1)
    ]
    config.output_dir.mkdir(parents=True, exist_ok=True)
    for name, tokens in rows:
        image = tokenizer.decode(torch.tensor([tokens[: config.n_tokens]], dtype=torch.int64))[0]
        _write_png(config.output_dir / name, image)
    print(f"{len(rows)} pictures: {config.output_dir}")
    return config.output_dir


def evaluate_tokenizer(config: VisionEvalConfig) -> dict[str, float]:
    """Print the measures of `judge_tokenizer` on held-out prompts, and write them where asked."""
    tokenizer = load_visual_tokenizer(config.tokenizer)
    _, held_out = split_prompts(tokenizer.world)
    measures = judge_tokenizer(tokenizer, held_out, n_pictures=config.n_pictures, seed=config.seed).to_dict()
    if config.is_lpips_wanted:
        measures["lpips"] = _mean_lpips(tokenizer, config)
    print("\n".join(f"{name:24} {value:10.4f}" for name, value in measures.items()))
    if config.output is not None:
        write_json(config.output, measures)
    return measures


@torch.no_grad()
def _mean_lpips(tokenizer: VisualTokenizer, config: VisionEvalConfig) -> float:
    _, held_out = split_prompts(tokenizer.world)
    generator = torch.Generator().manual_seed(config.seed)
    _, images = draw_pictures(tokenizer.world, held_out, config.n_pictures, generator)
    return float(load_lpips()(tokenizer.decode(tokenizer.encode(images)), images).mean())


def _read_row(line: str, *, where: str) -> tuple[str, list[int]]:
    row = json.loads(line)
    if not isinstance(row, dict) or not {"image", "tokens"} <= row.keys():
        raise ValueError(f"{where}: expected an object with image and tokens, found {line[:80]!r}")
    return Path(row["image"]).name, row["tokens"]


def _read_png(path: Path) -> Tensor:
    """[3, H, W] in [-1, 1]."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def _write_png(path: Path, image: Tensor) -> None:
    from PIL import Image

    pixels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)
