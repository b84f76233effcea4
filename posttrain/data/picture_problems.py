"""`posttrain vision problems`: the prompts of a world of pictures as problems that every verb reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from posttrain.data.rows import problem_to_json
from posttrain.data.sources import write_jsonl
from posttrain.schema import Problem
from posttrain.vision.prompts import split_prompts
from posttrain.vision.tokenizer import load_visual_tokenizer
from posttrain.vision.visual_text import prompt_text
from posttrain.vision.world import World

SplitName = Literal["held_out", "train"]


@dataclass(frozen=True, slots=True)
class PictureProblemsConfig:
    """Write prompts as problems, which eval, search and collect answer with visual tokens and grade as pictures."""

    visual_tokenizer: Path = field(
        metadata={"help": "Folder of the visual tokenizer that draws the answers; kept as written in every row."}
    )
    output: Path = field(metadata={"help": "JSON lines file to write."})
    split: SplitName = field(
        default="held_out", metadata={"help": "Prompts that no run trains on, or those that runs may train on."}
    )
    held_out_share: float = field(default=0.2, metadata={"help": "Share of the combinations that are held out."})
    split_seed: int = field(default=0, metadata={"help": "Which combinations those are."})


def write_picture_problems(config: PictureProblemsConfig) -> None:
    """Write the rows, and print how many there are of each family."""
    world = load_visual_tokenizer(config.visual_tokenizer).world
    problems = list(
        picture_problems(
            world,
            config.split,
            grader=f"picture:{config.visual_tokenizer}",
            held_out_share=config.held_out_share,
            split_seed=config.split_seed,
        )
    )
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(config.output, map(problem_to_json, problems))
    families = [dict(problem.tags)["family"] for problem in problems]
    counted = ", ".join(f"{families.count(family)} {family}" for family in dict.fromkeys(families))
    print(f"{config.output}: {len(problems)} prompts, {counted}")


def picture_problems(
    world: World, split: SplitName, *, grader: str, held_out_share: float = 0.2, split_seed: int = 0
) -> Iterator[Problem]:
    """One problem per prompt of the split: its text is the id and what is graded, its family and split are tags."""
    train, held_out = split_prompts(world, held_out_share=held_out_share, seed=split_seed)
    for prompt in {"train": train, "held_out": held_out}[split]:
        yield Problem(
            where=prompt.text,
            task_id=prompt.text,
            prompt=prompt_text(prompt.text),
            answer=prompt.text,
            grader=grader,
            tags=(("family", prompt.family.value), ("split", split)),
        )
