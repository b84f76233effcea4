"""`posttrain inspect credit`: answers coloured by the credit of each token, in the terminal and as an HTML page."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.data.answers import as_trajectory, is_trajectory
from posttrain.data.encode import encode_trajectory
from posttrain.data.problems import find_data
from posttrain.data.rows import parse_completion, parse_preference, parse_trajectory
from posttrain.data.sources import OnBadRow, read_rows
from posttrain.evaluation.credit import AnswerCredits, Networks, answer_credits, panels_of
from posttrain.evaluation.credit_html import credit_page
from posttrain.evaluation.credit_text import (
    colour_legend,
    coloured_answer,
    credit_table,
    margin_line,
    summary_lines,
)
from posttrain.models.loading import device_named
from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model
from posttrain.pretrained import load_tokenizer
from posttrain.schema import EncodedTrajectory, TrajectoryRow

Encoded = tuple[TrajectoryRow, EncodedTrajectory]


@dataclass(frozen=True, slots=True)
class CreditConfig:
    """Whose credit of which answers is shown.

    Rows are trajectories (recorded token ids are used as they are), prompt/completion rows, or preference rows, whose
    two answers are shown together. Advantages are in reward units.
    """

    source: str = field(
        metadata={"help": "JSONL or Parquet file, or Hub id owner/name:config:split", "positional": True}
    )
    model: str = field(metadata={"help": "the trained policy: a folder or Hub id of a causal LM, with its tokenizer"})
    reference: str = field(metadata={"help": "the reference it was trained against, of the same vocabulary"})
    value_model: str | None = field(
        default=None, metadata={"help": "value model whose steps r + V(s') - V(s) are shown beside"}
    )
    beta: float = field(default=0.1, metadata={"help": "temperature that the policy was trained with"})
    n: int = field(default=3, metadata={"help": "how many rows, from the first on"})
    html: Path | None = field(default=None, metadata={"help": "also write a self-contained page to this file"})
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "arithmetic of the networks"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto takes CUDA where there is one"})

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}, it must be above 0: give the one that the policy was trained with")
        if self.n < 1:
            raise ValueError(f"n is {self.n}, needs at least 1 row")


def inspect_credit(config: CreditConfig) -> None:
    """Print the credits of the first rows, and write the page where one was asked for.

    Raises RowsError or RowError for rows that cannot be used, ValueError for networks of different vocabularies.
    """
    source = read_rows(find_data(config.source), parse_answers, on_bad_row=OnBadRow.ERROR)
    tokenizer = load_tokenizer(config.model)
    encoded = [[_encode(row, tokenizer) for row in answers] for answers in source.rows[: config.n]]
    _require_same_tokens(encoded, tokenizer, load_tokenizer(config.reference))
    networks = _load_networks(config)
    rows = [
        [
            answer_credits(
                item,
                networks,
                tokenizer,
                beta=config.beta,
                where=row.where,
                is_rewarded=row.reward is not None or bool(row.step_rewards),
            )
            for row, item in answers
        ]
        for answers in encoded
    ]
    _print_rows(rows)
    if config.html is not None:
        config.html.parent.mkdir(parents=True, exist_ok=True)
        facts = [
            ("policy", config.model),
            ("reference", config.reference),
            ("value model", config.value_model or "none"),
            ("beta", f"{config.beta:g}"),
            ("rows", f"the first {len(rows)} of {source.n_read} in {source.source}, sha256 {source.sha256[:12]}"),
        ]
        config.html.write_text(credit_page(rows, title="Credit by token", facts=facts), encoding="utf-8")
        print(f"wrote {config.html}")


def parse_answers(obj: object, where: str) -> tuple[TrajectoryRow, ...]:
    """The answer of a trajectory or prompt/completion row; the chosen and the rejected one of a preference row."""
    if is_trajectory(obj):
        return (parse_trajectory(obj, where),)
    if isinstance(obj, Mapping) and obj.get("chosen") is not None:
        pair = parse_preference(obj, where)
        sides = (("chosen", pair.chosen), ("rejected", pair.rejected))
        return tuple(
            as_trajectory(pair.prompt, answer, where=f"{where}, {side}", task_id=where, reward=None)
            for side, answer in sides
        )
    row = parse_completion(obj, where)
    return (as_trajectory(row.prompt, row.completion, where=where, task_id=where, reward=None),)


def _encode(row: TrajectoryRow, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    return row, encode_trajectory(row, tokenizer, 0, step_delimiters=())


def _require_same_tokens(
    rows: Sequence[Sequence[Encoded]], tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> None:
    """Vocabularies of one size may still differ; only the ids that the rows hold matter."""
    used = sorted({token for answers in rows for _, item in answers for token in item.input_ids})
    ours, theirs = (vocabulary.convert_ids_to_tokens(used) for vocabulary in (tokenizer, other))
    for token, mine, yours in zip(used, ours, theirs, strict=True):
        if mine != yours:
            raise ValueError(
                f"token id {token} is {mine!r} to the model and {yours!r} to the reference: "
                "needed one vocabulary; the reference must be the model that the policy started from"
            )


def _load_networks(config: CreditConfig) -> Networks:
    dtype, device = getattr(torch, config.dtype), device_named(config.device)
    policy, reference = (load_policy(path, dtype=dtype) for path in (config.model, config.reference))
    value = None if config.value_model is None else load_value_model(config.value_model, dtype=dtype)
    for model in (policy, reference, value):
        if model is not None:
            model.to(device)  # pyright: ignore[reportArgumentType] - transformers hides that `to` is a method
            model.eval()
    return Networks(policy, reference, value)


def _print_rows(rows: Sequence[Sequence[AnswerCredits]]) -> None:
    is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    panels = panels_of([answer for row in rows for answer in row])
    if is_coloured:
        print("\n".join(map(colour_legend, panels)) + "\n")
    for row in rows:
        for answer in row:
            shown = coloured_answer(answer, panels) if is_coloured else credit_table(answer)
            print("\n  ".join((answer.where, *summary_lines(answer))) + f"\n{shown}\n")
        if len(row) == 2:
            print(f"{margin_line(*row)}\n")
