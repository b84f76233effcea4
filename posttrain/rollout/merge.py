"""`posttrain merge`: the shards of a collection as one file, nothing missing and nothing twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.data.tokenizer_card import summary_path
from posttrain.rollout.row_file import RowFile
from posttrain.rollout.shards import Shard, find_shards
from posttrain.rollout.tally import Tally

_OF_ONE_SHARD = ("shard", "problems_per_chunk")  # of a run: what an undivided one does not hold


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """Join the shards `<output>-<i>-of-<n>.jsonl` that `posttrain collect --shard` has written into one file."""

    output: Path = field(metadata={"help": "The output that `posttrain collect` was given, such as rows.jsonl."})


def merge(config: MergeConfig) -> Path:
    """Write the rows of all shards to `config.output` in the order of the problems, with one summary beside them.

    The file is, byte for byte, the one that a single engine would have written. Raises ValueError when shards are
    missing, unfinished or of different runs, when a problem comes twice, or when `config.output` is there already.
    """
    if config.output.exists():
        raise ValueError(f"{config.output} is there already: move it away, or take another name for the shards too")
    paths = _complete_set(config.output)
    summaries = [_read_summary(path) for path in paths]
    run = _common_run(paths, summaries)
    chunk_rows = summaries[0]["run"]["problems_per_chunk"] * run["samples_per_problem"]
    tally = sum((Tally.from_json(summary) for summary in summaries), start=Tally())
    for path, summary in zip(paths, summaries, strict=True):
        _require_count(path, summary["n_rows"])
    _write(config.output, paths, chunk_rows=chunk_rows, n_per_problem=run["samples_per_problem"])
    shared = {key: value for key, value in summaries[0].items() if key != "last_run"}  # each shard had its own
    shared["config"] = {**shared["config"], "shard": None}
    RowFile(config.output, n_per_problem=run["samples_per_problem"]).write_summary(
        {**shared, "run": run, **tally.to_json(), "shards": [path.name for path in paths]}
    )
    print(f"{config.output}: {tally.n_rows:,} answers to {tally.n_problems:,} problems of {len(paths)} shards")
    return config.output


def _complete_set(output: Path) -> list[Path]:
    found = find_shards(output)
    if not found:
        raise ValueError(f"there is no {Shard(count=2, index=0).path(output)} or the like: run collect with --shard")
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        raise ValueError(f"beside {output} are shards of {counts} parts: move those of the other collection away")
    missing = [str(index) for index in range(counts[0]) if Shard(count=counts[0], index=index) not in found]
    if missing:
        raise ValueError(
            f"of the {counts[0]} shards of {output.name}, {', '.join(missing)} are missing: run collect with "
            f"--shard {missing[0]}/{counts[0]}"
        )
    return list(found.values())


def _read_summary(path: Path) -> dict[str, Any]:
    summary = json.loads(summary_path(path).read_text(encoding="utf-8"))
    if not summary["is_complete"]:
        raise ValueError(f"{path.name} is not finished: run collect with --shard {summary['run']['shard']} again")
    return summary


def _require_count(path: Path, n_expected: int) -> None:
    with path.open("rb") as file:
        n_rows = sum(1 for _ in file)
    if n_rows != n_expected:
        raise ValueError(
            f"{path.name} holds {n_rows:,} rows, its summary counts {n_expected:,}: was it changed since?"
        )


def _common_run(paths: Sequence[Path], summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The run of which all are shards, as an undivided one would record it."""
    first = {**summaries[0]["run"], "n_problems": summaries[0]["n_problems_of_all_shards"]}
    for path, summary in zip(paths, summaries, strict=True):
        own = {**summary["run"], "n_problems": summary["n_problems_of_all_shards"]}
        different = [
            f"{key} is {own[key]!r}, was {first[key]!r}" for key in first if key != "shard" and own[key] != first[key]
        ]
        if different:
            raise ValueError(f"{path.name} is of another run than {paths[0].name}: {'; '.join(different)}")
    return {key: value for key, value in summaries[0]["run"].items() if key not in _OF_ONE_SHARD} | {"shard": None}


def _write(output: Path, paths: Sequence[Path], *, chunk_rows: int, n_per_problem: int) -> None:
    """Write the rows, all or none."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    seen: dict[str, str] = {}
    try:
        with ExitStack() as stack, temporary.open("wb") as file:
            shards = {path.name: stack.enter_context(path.open("rb")) for path in paths}
            for name, lines in _problems(shards, chunk_rows=chunk_rows, n_per_problem=n_per_problem):
                _require_new(lines, name, seen)
                file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _problems(
    shards: Mapping[str, BinaryIO], *, chunk_rows: int, n_per_problem: int
) -> Iterator[tuple[str, list[bytes]]]:
    """The rows of one problem at a time, with the name of their file; the shards take turns, a chunk each."""
    chunk = None
    while chunk != []:
        for name, file in shards.items():
            chunk = list(islice(file, chunk_rows))
            for first in range(0, len(chunk), n_per_problem):
                yield name, chunk[first : first + n_per_problem]


def _require_new(lines: Sequence[bytes], name: str, seen: dict[str, str]) -> None:
    task_ids = {json.loads(line)["task_id"] for line in lines}
    if len(task_ids) != 1:
        raise ValueError(f"{name}: the rows of {sorted(task_ids)} are mixed: needed all rows of a problem in a row")
    [task_id] = task_ids
    if task_id in seen:
        raise ValueError(f"{task_id!r} is in {seen[task_id]} and in {name}: was a shard copied under another name?")
    seen[task_id] = name
