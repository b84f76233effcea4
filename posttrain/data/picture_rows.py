"""`posttrain vision rows`: drawn pictures as rows to imitate, from a prompt to its picture's visual tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from posttrain.data.rows import trajectory_to_json
from posttrain.data.sources import write_jsonl
from posttrain.schema import FinishReason, TrajectoryRow
from posttrain.vision.pictures import draw_pictures
from posttrain.vision.prompts import NUMERALS, ImagePrompt, Relation, split_prompts
from posttrain.vision.tokenizer import VisualTokenizer, load_visual_tokenizer
from posttrain.vision.visual_text import completion_text, prompt_text

PICTURES_AT_ONCE = 512
RELATIONS = tuple(relation.value for relation in Relation)
COUNTS = tuple(word for number, word in NUMERALS.items() if number > 1)


@dataclass(frozen=True, slots=True)
class PictureRowsConfig:
    """Draw pictures for training prompts and write them as trajectory rows, which posttrain sft imitates."""

    visual_tokenizer: Path = field(metadata={"help": "Folder of the visual tokenizer."})
    output: Path = field(metadata={"help": "JSON lines file to write."})
    n_rows: int = field(default=50_000, metadata={"help": "Pictures, the families of prompts in turn."})
    corrupted_share: float = field(
        default=0.0,
        metadata={"help": "Share of rows whose relation or number word is drawn at random, as captions are wrong."},
    )
    unconditional_share: float = field(
        default=0.0, metadata={"help": "Share of rows without a prompt, which guidance needs."}
    )
    held_out_share: float = field(default=0.2, metadata={"help": "Share of the combinations that are held out."})
    split_seed: int = field(default=0, metadata={"help": "Which combinations those are."})
    seed: int = field(default=0, metadata={"help": "Of prompts, pictures and corruptions."})

    def __post_init__(self) -> None:
        if self.n_rows < 1:
            raise ValueError(f"n_rows is {self.n_rows}, needs at least 1")
        for name in ("corrupted_share", "unconditional_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needs a share from 0 to 1")


def write_picture_rows(config: PictureRowsConfig) -> None:
    """Write the rows, and print how many and the first. Same machine, versions and config: the same rows."""
    tokenizer = load_visual_tokenizer(config.visual_tokenizer)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(config.output, map(trajectory_to_json, picture_rows(tokenizer, config)))
    with config.output.open(encoding="utf-8") as file:
        print(f"{config.output}: {config.n_rows:,} rows; the first is\n{file.readline().strip()}")


def picture_rows(tokenizer: VisualTokenizer, config: PictureRowsConfig) -> Iterator[TrajectoryRow]:
    """The rows: K visual tokens each, and no EOS after them."""
    generator = torch.Generator().manual_seed(config.seed)
    train, _ = split_prompts(tokenizer.world, held_out_share=config.held_out_share, seed=config.split_seed)
    prompts, images = draw_pictures(tokenizer.world, train, config.n_rows, generator)
    codes = torch.cat([tokenizer.encode(some) for some in images.split(PICTURES_AT_ONCE)])
    for place, (prompt, own) in enumerate(zip(prompts, codes, strict=True)):
        yield _row(place, prompt, _caption(prompt, config, generator), own)


def _caption(prompt: ImagePrompt, config: PictureRowsConfig, generator: torch.Generator) -> str:
    is_corrupted, is_dropped = torch.rand(2, generator=generator).tolist()
    if is_dropped < config.unconditional_share:
        return ""
    return _corrupted(prompt.text, generator) if is_corrupted < config.corrupted_share else prompt.text


def _corrupted(text: str, generator: torch.Generator) -> str:
    """The text with its relation or number word, if it has one, drawn from all of its kind."""
    for kind in (RELATIONS, COUNTS):
        found = next((words for words in kind if f" {words} " in f" {text} "), None)
        if found is not None:
            drawn = kind[int(torch.randint(len(kind), (), generator=generator))]
            return f" {text} ".replace(f" {found} ", f" {drawn} ").strip()
    return text


def _row(place: int, prompt: ImagePrompt, caption: str, codes: Tensor) -> TrajectoryRow:
    return TrajectoryRow(
        where=f"row {place}",
        task_id=f"{place}: {prompt.text}",
        prompt=prompt_text(caption),
        completion=completion_text(codes),
        input_ids=None,
        action_spans=(),
        reward=1.0,
        step_rewards=(),
        finish_reason=FinishReason.LENGTH,
        behavior_logp=None,
        ref_logp=None,
    )
