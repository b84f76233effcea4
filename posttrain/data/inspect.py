"""Looking at data before training on it: `posttrain data check` and `posttrain data inspect`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from transformers import PreTrainedTokenizerBase

from posttrain.data.audit import prepare
from posttrain.data.encode import encode_trajectory
from posttrain.data.problems import find_data
from posttrain.data.rows import parse_completion, parse_preference, parse_trajectory
from posttrain.data.sources import OnBadRow, Rows, read_rows
from posttrain.data.steps import decode_exactly
from posttrain.pretrained import load_tokenizer
from posttrain.schema import EncodedTrajectory, TrajectoryRow

RESET = "\x1b[0m"
STYLE = {"prompt": "\x1b[2m", "action": "\x1b[32m", "step start": "\x1b[1;4;36m", "reward": "\x1b[1;33m"}


class RowKind(StrEnum):
    TRAJECTORY = "trajectory"
    COMPLETION = "completion"
    PREFERENCE = "preference"


PARSERS: dict[RowKind, Callable[[object, str], object]] = {
    RowKind.TRAJECTORY: parse_trajectory,
    RowKind.COMPLETION: parse_completion,
    RowKind.PREFERENCE: parse_preference,
}


@dataclass(frozen=True, slots=True)
class DataCheckConfig:
    """What `posttrain data check` reads and how strictly."""

    source: str = field(
        metadata={"help": "JSONL or Parquet file, or Hub id owner/name:config:split", "positional": True}
    )
    kind: RowKind = field(default=RowKind.TRAJECTORY, metadata={"help": "which columns the rows must have"})
    on_bad_row: OnBadRow = field(default=OnBadRow.ERROR, metadata={"help": "stop at bad rows, or count and skip them"})
    tokenizer: str | None = field(
        default=None, metadata={"help": "folder or Hub id; with it trajectories are encoded and their lengths shown"}
    )
    max_length: int = field(default=2048, metadata={"help": "tokens; longer trajectories would be dropped"})
    max_dropped_fraction: float = field(default=0.05, metadata={"help": "more too-long rows than this are an error"})

    def __post_init__(self) -> None:
        if self.tokenizer is not None and self.kind is not RowKind.TRAJECTORY:
            raise ValueError(f"tokenizer is given with kind {self.kind}, only trajectories are encoded: leave it out")


@dataclass(frozen=True, slots=True)
class DataInspectConfig:
    """Which trajectories `posttrain data inspect` shows, and through which tokenizer."""

    source: str = field(
        metadata={"help": "JSONL or Parquet file, or Hub id owner/name:config:split", "positional": True}
    )
    tokenizer: str = field(metadata={"help": "folder or Hub id of the tokenizer"})
    n: int = field(default=3, metadata={"help": "how many rows, from the first on"})
    step_delimiters: tuple[str, ...] = field(default=("\n",), metadata={"help": "texts that end a reasoning step"})


def data_check(config: DataCheckConfig) -> None:
    """Print what is in a source; raises RowsError with up to 20 faults when it cannot be used."""
    source = find_data(config.source)
    if config.tokenizer is None:
        print(_counts(read_rows(source, PARSERS[config.kind], on_bad_row=config.on_bad_row)))
        return
    tokenizer = load_tokenizer(config.tokenizer)
    rows = read_rows(source, parse_trajectory, on_bad_row=config.on_bad_row)
    prepared = prepare(
        rows,
        tokenizer,
        max_length=config.max_length,
        step_delimiters=(),
        max_dropped_fraction=config.max_dropped_fraction,
    )
    print(prepared.audit.table())


def data_inspect(config: DataInspectConfig) -> None:
    """Print the first rows token by token: coloured text in a terminal, one token per line elsewhere."""
    tokenizer = load_tokenizer(config.tokenizer)
    rows = read_rows(find_data(config.source), parse_trajectory, on_bad_row=OnBadRow.ERROR).rows[: config.n]
    draw = colored_tokens if sys.stdout.isatty() and "NO_COLOR" not in os.environ else token_table
    for row_id, row in enumerate(rows):
        encoded = encode_trajectory(row, tokenizer, row_id, step_delimiters=config.step_delimiters)
        print(f"{_heading(row, encoded)}\n{draw(encoded, tokenizer)}\n")


def token_table(encoded: EncodedTrajectory, tokenizer: PreTrainedTokenizerBase) -> str:
    """One line per token: index, id, role, reward where there is one, text."""
    lines = [f"{'index':>6} {'id':>7}  {'role':<10} {'reward':>7}  text"]
    for index, (token, role, reward) in enumerate(
        zip(encoded.input_ids, _roles(encoded), encoded.reward, strict=True)
    ):
        shown = f"{reward:g}" if reward else ""
        lines.append(f"{index:>6} {token:>7}  {role:<10} {shown:>7}  {decode_exactly(tokenizer, (token,))!r}")
    return "\n".join(lines)


def colored_tokens(encoded: EncodedTrajectory, tokenizer: PreTrainedTokenizerBase) -> str:
    """The running text in the colours of its roles, each reward in brackets after the action that received it."""
    legend = " ".join(f"{style}{role}{RESET}" for role, style in STYLE.items())
    parts = []
    for token, role, reward in zip(encoded.input_ids, _roles(encoded), encoded.reward, strict=True):
        parts.append(f"{STYLE[role]}{visible(decode_exactly(tokenizer, (token,)))}{RESET}")
        if reward:
            parts.append(f"{STYLE['reward']}[{reward:+g}]{RESET}")
    return f"{legend}\n{''.join(parts)}"


def _roles(encoded: EncodedTrajectory) -> list[str]:
    names = {(False, False): "prompt", (True, False): "action", (True, True): "step start"}
    return [names[key] for key in zip(encoded.is_action, encoded.is_step_start, strict=True)]


def visible(text: str) -> str:
    """Line breaks keep their effect behind a mark; other control characters cannot reach the terminal."""
    marked = (
        f"{chr(0x21B5)}\n" if char == "\n" else char if char.isprintable() else repr(char)[1:-1] for char in text
    )
    return "".join(marked)


def _heading(row: TrajectoryRow, encoded: EncodedTrajectory) -> str:
    return (
        f"row {encoded.row_id}  {row.where}  task {row.task_id}  {row.finish_reason}  "
        f"{len(encoded.input_ids)} tokens, {sum(encoded.is_action)} actions, "
        f"{sum(encoded.is_step_start)} steps, reward {sum(encoded.reward):g}"
    )


def _counts(rows: Rows[object]) -> str:
    lines: Sequence[tuple[str, int]] = (
        ("rows read", rows.n_read),
        ("bad, skipped", rows.n_bad),
        ("usable", len(rows.rows)),
    )
    head = f"{rows.source}  sha256 {rows.sha256[:12]}"
    return "\n".join((head, *(f"  {name:<12}  {count:>10,}" for name, count in lines)))
