"""`posttrain vision page`: answers to picture problems as a page of pictures, with checks and the credit of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.encode import encode_prompt
from posttrain.data.problems import read_problems
from posttrain.evaluation.contact_sheet import contact_sheet
from posttrain.evaluation.image_page import image_page
from posttrain.evaluation.records import read_records
from posttrain.models.value import load_value_model, values_at_every_position
from posttrain.pretrained import load_tokenizer
from posttrain.rewards.picture import PICTURE_PREFIX, picture_codes
from posttrain.schema import AnswerRecord, Problem
from posttrain.vision.image_records import ImageRecord, png_of, write_image_records
from posttrain.vision.image_reward import grade_images
from posttrain.vision.prompts import Family, prompt_of
from posttrain.vision.tokenizer import VisualTokenizer, load_visual_tokenizer
from posttrain.vision.visual_text import visual_ids

SHEET_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class PicturePageConfig:
    """Draw the answers of eval run or search to picture problems."""

    answers: list[Path] = field(metadata={"help": "Result files of eval run or search."})
    problems: Path = field(metadata={"help": "The problems that they answer, from posttrain vision problems."})
    output: Path = field(metadata={"help": "HTML file to write; a .png contact sheet and the .jsonl go beside it."})
    method: tuple[str, ...] = field(
        default=(), metadata={"help": "Only answers of these methods, such as sft/sample; default: of all."}
    )
    prompts_per_family: int = field(default=4, metadata={"help": "The first so many prompts of each family."})
    pictures_per_prompt: int = field(default=2, metadata={"help": "The first so many of each method."})
    value_model: str | None = field(
        default=None, metadata={"help": "Value model whose V is drawn at every token of a picture."}
    )
    title: str = field(default="Pictures", metadata={"help": "Heading of the page."})


def write_picture_page(config: PicturePageConfig) -> Path:
    """Write the page, its contact sheet and its records; returns the page.

    Raises ValueError when no answer of the methods is a picture.
    """
    problems = {problem.task_id: problem for problem in read_problems(config.problems, limit=None)}
    graders = {problem.grader for problem in problems.values()}
    if len(graders) != 1 or not next(iter(graders)).startswith(PICTURE_PREFIX):
        raise ValueError(
            f"{config.problems} has graders {sorted(graders)}, needed one {PICTURE_PREFIX}<folder>: was it written by "
            "posttrain vision problems?"
        )
    tokenizer = load_visual_tokenizer(Path(graders.pop().removeprefix(PICTURE_PREFIX)))
    answers = [record for path in config.answers for record in read_records(path)]
    shown = list(_chosen(config, answers, problems))
    reader = None if config.value_model is None else _TokenValues(config.value_model)
    records = [_image_record(tokenizer, problems[answer.task_id], answer, reader) for answer in shown]
    if not records:
        known = ", ".join(sorted({answer.method for answer in answers})) or "none"
        raise ValueError(f"no picture among the answers of {', '.join(config.method) or 'any method'}; there: {known}")
    facts = [("answers", ", ".join(path.name for path in config.answers)), ("pictures", str(len(records)))]
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(image_page(records, title=config.title, facts=facts), encoding="utf-8")
    write_image_records(config.output.with_suffix(".jsonl"), records)
    contact_sheet(config.output.with_suffix(".png"), records, n_columns=SHEET_COLUMNS)
    print(f"{config.output}: {len(records)} pictures")
    return config.output


def _chosen(
    config: PicturePageConfig, answers: Sequence[AnswerRecord], problems: dict[str, Problem]
) -> Iterator[AnswerRecord]:
    """By family and prompt; of each prompt the first pictures of each method, in the order of the answers."""
    methods = config.method or tuple(dict.fromkeys(answer.method for answer in answers))
    by_prompt: dict[tuple[str, str], list[AnswerRecord]] = {}
    for answer in answers:
        if answer.task_id in problems and answer.method in methods and picture_codes(answer.text):
            by_prompt.setdefault((answer.task_id, answer.method), []).append(answer)
    for family in Family:
        own = (task for task, problem in problems.items() if dict(problem.tags).get("family") == family)
        for task in islice(own, config.prompts_per_family):
            for method in methods:
                yield from by_prompt.get((task, method), [])[: config.pictures_per_prompt]


class _TokenValues:
    """V in every state of a picture."""

    def __init__(self, path: str) -> None:
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(path)
        self.model: PreTrainedModel = load_value_model(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def before_each(self, prompt: str, codes: Sequence[int]) -> list[float]:
        """V of the state in which each token is chosen, [K]."""
        prompt_ids = encode_prompt(prompt, self.tokenizer)
        ids = torch.tensor([[*prompt_ids, *visual_ids(self.tokenizer).to_tokens(torch.tensor(codes)).tolist()]])
        values = values_at_every_position(self.model, ids, torch.ones_like(ids, dtype=torch.bool))[0]
        return values[len(prompt_ids) - 1 : -1].tolist()


def _image_record(
    tokenizer: VisualTokenizer, problem: Problem, answer: AnswerRecord, reader: _TokenValues | None
) -> ImageRecord:
    codes = picture_codes(answer.text)
    assert codes is not None  # the others were left out
    image = tokenizer.decode(torch.tensor([codes]))
    prompt = prompt_of(tokenizer.world, problem.answer)
    (grade,) = grade_images(tokenizer.world, [prompt], image)
    values = advantages = None
    if reader is not None:
        values = reader.before_each(problem.prompt, codes)
        # What each token changed; after the last one comes the reward.
        advantages = tuple(after - before for before, after in pairwise([*values, grade.strict]))
    return ImageRecord(
        prompt=prompt.text,
        family=prompt.family,
        is_held_out=dict(problem.tags).get("split") == "held_out",
        method=answer.method,
        seed=answer.seed,
        tokens=tuple(codes),
        grade=grade,
        png=png_of(image[0]),
        values=None if values is None else tuple(values),
        advantages=advantages,
    )
