"""Questions with gold answers: GSM8K, MATH, this library's own problem rows, and generated reasoning-gym problems."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from posttrain.data.fields import Fields
from posttrain.data.generated import GENERATED_PREFIX, generate_problems
from posttrain.data.known_splits import warn_where_it_differs
from posttrain.data.math_problems import is_math_row, parse_math_problem
from posttrain.data.rows import parse_problem
from posttrain.data.sources import LOCAL_FORMATS, OnBadRow, hub_parts, read_rows
from posttrain.schema import Problem

PromptTemplate = Callable[[str], str]  # question -> the exact text that the policy continues

DATA_FOLDER_VARIABLE = "POSTTRAIN_DATA"
SIBLING_DATA_FOLDER = Path("../shared/data")

FINAL_NUMBER = re.compile(r"####\s*(-?[\d,]*\.?\d+)\s*\Z")


def plain_prompt(question: str) -> str:
    """The default template: no chat markup, the answer starts after the last colon."""
    return f"Question: {question}\nAnswer:"


def bare_prompt(question: str) -> str:
    """The question and a line break; for policies trained from scratch on such lines."""
    return f"{question}\n"


def chat_prompt(question: str, *, tokenizer: PreTrainedTokenizerBase, instruction: str) -> str:
    """The question as a user turn after a system instruction (none if empty), rendered up to the assistant's turn."""
    system = [{"role": "system", "content": instruction}] if instruction else []
    messages = [*system, {"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


PROMPT_TEMPLATES: dict[str, PromptTemplate] = {"plain": plain_prompt, "bare": bare_prompt}
TemplateName = Literal["plain", "bare", "chat"]


def named_template(name: TemplateName, tokenizer: PreTrainedTokenizerBase, *, instruction: str) -> PromptTemplate:
    """The template of that name; only `chat` has a system message, so an instruction for another is a ValueError."""
    if name == "chat":
        return partial(chat_prompt, tokenizer=tokenizer, instruction=instruction)
    return text_template(name, instruction=instruction)


def text_template(name: str, *, instruction: str) -> PromptTemplate:
    """The template of that name, of those without a system message; ValueError for an instruction."""
    if instruction:
        raise ValueError(f"instruction is set, but template is {name!r}: only 'chat' has a system message")
    return PROMPT_TEMPLATES[name]


def read_problems(source: str | Path, *, limit: int | None, template: PromptTemplate = plain_prompt) -> list[Problem]:
    """The first `limit` problems (None: all) of a source.

    A source is a JSONL or Parquet file or a Hub id, with GSM8K rows {question, answer}, MATH rows {problem, solution,
    level, type or subject} or problem rows; or `reasoning_gym:<dataset>?size=..&seed=..`, generated on the spot. A
    file that is not there is looked for below the folder in POSTTRAIN_DATA, then below ../shared/data. `template` is
    applied to questions; a problem row's prompt is already the exact text. Raises RowsError, and warns where a split
    that has a card holds other rows than the card says.
    """
    if str(source).startswith(GENERATED_PREFIX):
        problems = [replace(problem, prompt=template(problem.prompt)) for problem in generate_problems(str(source))]
    else:
        found = find_data(source)
        parse = partial(_parse_any_problem, split=_split_name(str(found)), template=template)
        rows = read_rows(found, parse, on_bad_row=OnBadRow.ERROR)
        warn_where_it_differs(rows)
        problems = list(rows.rows)
    return problems if limit is None else problems[:limit]


def require_distinct_ids(problems: Sequence[Problem]) -> None:
    """Raises ValueError when two problems share a task_id."""
    repeated = [task_id for task_id, n in Counter(problem.task_id for problem in problems).items() if n > 1]
    if repeated:
        raise ValueError(
            f"task_id {repeated[0]!r} is that of several problems ({len(repeated)} ids repeat): their answers could "
            "not be told apart, and would be drawn from the same random stream"
        )


def find_data(source: str | Path) -> str | Path:
    """The source itself if it is a path that exists; else the same path below a data folder; else unchanged."""
    named = os.environ.get(DATA_FOLDER_VARIABLE)
    folders = [Path(), *([Path(named)] if named else []), SIBLING_DATA_FOLDER]
    return next((folder / source for folder in folders if (folder / source).is_file()), source)


def first_at_hand(sources: Sequence[str]) -> str:
    """The first of the sources that is a file here, as find_data looks; else the last: a Hub id or a generator."""
    return next((source for source in sources if Path(find_data(source)).is_file()), sources[-1])


def _split_name(source: str) -> str:
    """ "train" of gsm8k/train.jsonl and of openai/gsm8k:main:train, so that both give the same task ids."""
    if Path(source).suffix in LOCAL_FORMATS:
        return Path(source).stem
    return hub_parts(source).split


def _parse_any_problem(obj: object, where: str, *, split: str, template: PromptTemplate) -> Problem:
    if is_math_row(obj):
        return parse_math_problem(obj, where, split=split, template=template)
    if not (isinstance(obj, dict) and "question" in obj):
        return parse_problem(obj, where)
    fields = Fields(obj, where)
    question, solution = fields.text("question"), fields.text("answer")
    final = FINAL_NUMBER.search(solution)
    if final is None and fields.is_sound("answer"):
        fields.fault("answer", f"ends in {solution[-30:]!r}, expected a last line '#### <number>'")
    fields.raise_faults()
    return Problem(
        where=where,
        task_id=f"gsm8k/{split}/{where.rpartition(':')[2]}",
        prompt=template(question),
        answer=final[1].replace(",", "") if final else "",
        grader="final_number",
    )
