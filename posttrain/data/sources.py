"""Where rows come from: JSON lines, Parquet, or a data set of the Hugging Face Hub; and how JSON lines are written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

from posttrain.data.fields import RowError

RowT = TypeVar("RowT")

MAX_SHOWN_FAULTS = 20
LOCAL_FORMATS = (".jsonl", ".parquet")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]*){0,2}")
SOURCE_GRAMMAR = "a .jsonl or .parquet file, or a Hub id as owner/name:config:split (split train if left out)"


class OnBadRow(StrEnum):
    """What a row that cannot be used does to the reading of its source."""

    ERROR = "error"  # stop, after naming up to 20 faults
    SKIP = "skip"  # leave it out and count it


class RowsError(ValueError):
    """A source that cannot be used; the message lists up to 20 faults, one per line."""


@dataclass(frozen=True, slots=True)
class Rows(Generic[RowT]):
    """The rows of one source, and what was seen on the way."""

    source: str
    rows: tuple[RowT, ...]
    n_read: int  # rows in the source, bad ones included
    n_bad: int  # left out; 0 unless bad rows are skipped
    sha256: str  # of the file's bytes; of the rows as sorted JSON lines for a Hub source


@dataclass(frozen=True, slots=True)
class HubParts:
    name: str  # "openai/gsm8k"
    config: str | None
    split: str


def hub_parts(source: str) -> HubParts:
    """The parts of `owner/name:config:split`; an empty config is the default one, an empty split is train."""
    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    return HubParts(name, config or None, split or "train")


def read_rows(source: str | Path, parse: Callable[[object, str], RowT], *, on_bad_row: OnBadRow) -> Rows[RowT]:
    """Read and parse every row of a local .jsonl or .parquet file, or of a Hub data set `owner/name:config:split`.

    `parse` gets the JSON object and `file:line`. Raises RowsError when the source cannot be read, holds no usable row,
    or holds a bad row under OnBadRow.ERROR.
    """
    rows: list[RowT] = []
    faults: list[str] = []
    n_read = n_bad = 0
    digest = hashlib.sha256()
    for where, raw in _records(str(source), digest.update):
        n_read += 1
        try:
            rows.append(parse(_json_value(raw, where) if isinstance(raw, bytes) else raw, where))
        except RowError as error:
            n_bad += 1
            faults.extend(error.faults[: MAX_SHOWN_FAULTS - len(faults)])
    if n_read == 0:
        raise RowsError(f"{source}: holds no row, expected at least one")
    if n_bad and (on_bad_row is OnBadRow.ERROR or not rows):
        way_out = "; mend them, or skip them with --on_bad_row skip" if rows else ""
        raise faults_error(str(source), faults, n_bad=n_bad, n_read=n_read, way_out=way_out)
    return Rows(str(source), tuple(rows), n_read, n_bad, digest.hexdigest())


def faults_error(source: str, faults: Iterable[str], *, n_bad: int, n_read: int, way_out: str = "") -> RowsError:
    """The error that lists up to 20 faults under a count of the bad rows."""
    shown = list(faults)[:MAX_SHOWN_FAULTS]
    head = f"{source}: {n_bad:,} of {n_read:,} rows cannot be used{way_out}"
    return RowsError("\n".join((head, *(f"  {fault}" for fault in shown))))


def write_jsonl(path: str | Path, objs: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object per line, whole or not at all: into a temporary file beside `path`, then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for obj in objs:
                file.write(json.dumps(obj, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _records(source: str, digest: Callable[[bytes], None]) -> Iterator[tuple[str, object]]:
    """(`file:line`, raw row) of each row: bytes from JSON lines, an object from the other formats."""
    path = Path(source)
    if path.is_dir():
        raise RowsError(f"{source}: is a folder, expected {SOURCE_GRAMMAR}")
    if path.suffix not in LOCAL_FORMATS and not path.exists() and HUB_ID.fullmatch(source):
        return _hub_records(source, digest)
    if not path.exists():
        raise RowsError(f"{source}: no such file, expected {SOURCE_GRAMMAR}")
    if path.suffix == ".jsonl":
        return _jsonl_records(path, digest)
    if path.suffix == ".parquet":
        return _parquet_records(path, digest)
    raise RowsError(f"{source}: ends in '{path.suffix}', expected {SOURCE_GRAMMAR}")


def _jsonl_records(path: Path, digest: Callable[[bytes], None]) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                digest(line)
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise RowsError(f"{path}: is UTF-16, expected UTF-8; convert it with iconv -f utf-16 -t utf-8")
                yield f"{path.name}:{number}", line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except OSError as error:
        raise RowsError(f"{path}: cannot be read: {error.strerror}") from error


def _json_value(line: bytes, where: str) -> object:
    if not line.strip():
        raise RowError([f"{where}: line: is empty, expected a JSON object"])
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError([f"{where}: line: byte {error.start} is not UTF-8, expected UTF-8 text"]) from error
    except json.JSONDecodeError as error:
        fault = f"is no JSON ({error.msg}, column {error.colno}), expected one object per line"
        raise RowError([f"{where}: line: {fault}"]) from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; thousands of brackets
        fault = "holds a number too long or brackets too deep to read, expected a plain row"
        raise RowError([f"{where}: line: {fault}"]) from error


def _parquet_records(path: Path, digest: Callable[[bytes], None]) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest(block)
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        objs = (obj for batch in batches for obj in batch.to_pylist())
        for number, obj in enumerate(objs, start=1):
            yield f"{path.name}:{number}", obj
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RowsError(f"{path}: cannot be read as Parquet: {error}") from error


def _hub_records(source: str, digest: Callable[[bytes], None]) -> Iterator[tuple[str, object]]:
    for number, obj in enumerate(_load_from_hub(hub_parts(source)), start=1):
        digest(json.dumps(obj, sort_keys=True, default=str).encode() + b"\n")
        yield f"{source}:{number}", obj


def _load_from_hub(hub: HubParts) -> Iterable[object]:
    import datasets  # seconds to import, and needed for this source only

    try:
        return datasets.load_dataset(hub.name, hub.config, split=hub.split)
    except (OSError, ValueError) as error:
        place = f"config {hub.config or 'default'}, split {hub.split}"
        raise RowsError(f"{hub.name}: no local file, and not loaded from the Hub ({place}): {error}") from error
