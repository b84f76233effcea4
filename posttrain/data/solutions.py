"""`posttrain data solutions`: the worked solutions of GSM8K and MATH as rows for supervised fine-tuning."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from posttrain.data.fields import Fields
from posttrain.data.known_splits import known_split, warn_where_it_differs
from posttrain.data.math_problems import is_math_row
from posttrain.data.problems import (
    PromptTemplate,
    TemplateName,
    find_data,
    named_template,
    plain_prompt,
    text_template,
)
from posttrain.data.sources import OnBadRow, read_rows, write_jsonl
from posttrain.pretrained import load_tokenizer
from posttrain.schema import CompletionRow

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, slots=True)
class SolutionsConfig:
    """Whose worked solutions `posttrain data solutions` writes, and behind which prompt."""

    source: str = field(
        metadata={
            "help": "gsm8k/train.jsonl, math/math_train.jsonl, or other rows of these two forms: a file or a Hub id",
            "positional": True,
        }
    )
    output: Path = field(metadata={"help": "JSON lines file to write: rows {prompt, completion} for posttrain sft"})
    template: TemplateName = field(default="plain", metadata={"help": "how a question becomes a prompt"})
    tokenizer: str | None = field(
        default=None, metadata={"help": "folder or Hub id of the model whose chat template is meant by template chat"}
    )
    instruction: str = field(default="", metadata={"help": "system message of the chat template"})
    limit: int | None = field(default=None, metadata={"help": "take the first so many rows"})

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, needs at least 1")
        if (self.template == "chat") != (self.tokenizer is not None):
            raise ValueError(
                f"template is {self.template} and tokenizer {self.tokenizer}: template chat needs one, others none"
            )


def write_solutions(config: SolutionsConfig) -> None:
    """Write the rows, and print how many and the first prompt. Raises ValueError for a test split that is known."""
    split = known_split(str(find_data(config.source)))
    if split is not None and "train" not in split.file:
        card = f"data/{Path(split.file).parent}/README.md"
        raise ValueError(f"{config.source} is a test split ({card}): it is not for training")
    if config.tokenizer is None:
        template = text_template(config.template, instruction=config.instruction)
    else:
        template = named_template(config.template, load_tokenizer(config.tokenizer), instruction=config.instruction)
    rows = read_solutions(config.source, limit=config.limit, template=template)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(config.output, ({"prompt": row.prompt, "completion": row.completion} for row in rows))
    print(f"{config.output}: {len(rows):,} solutions; the first prompt is\n{rows[0].prompt}")


def read_solutions(
    source: str | Path, *, limit: int | None, template: PromptTemplate = plain_prompt
) -> list[CompletionRow]:
    """The human solutions of GSM8K rows {question, answer} or MATH rows {problem, solution}, as they are written.

    GSM8K's calculator marks are removed and `#### N` is kept as the last line. A space stands before a solution
    unless its prompt ends in white space. Raises RowsError, and warns where a split that has a card holds other rows.
    """
    rows = read_rows(find_data(source), partial(_parse_solution, template=template), on_bad_row=OnBadRow.ERROR)
    warn_where_it_differs(rows)
    return list(rows.rows if limit is None else rows.rows[:limit])


def _parse_solution(obj: object, where: str, *, template: PromptTemplate) -> CompletionRow:
    fields = Fields(obj, where)
    if is_math_row(obj):
        question, solution = fields.text("problem"), fields.text("solution")
    else:
        question, solution = fields.text("question"), CALCULATOR_MARK.sub("", fields.text("answer"))
    fields.raise_faults()
    prompt = template(question)
    gap = "" if prompt[-1:].isspace() else " "
    return CompletionRow(where, prompt, gap + solution)
