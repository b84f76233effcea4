"""Results on file: JSON lines of AnswerRecord, written append-only and read strictly.

One line is one answer.  A method gives one answer per (task, seed, budget), except `<policy>/sample`, whose lines are
the single samples behind the other methods: several per task, each with budget 1.

A recorded study may keep its file gzipped, as answers.jsonl.gz: it is read in the same way, and never appended to.

Several processes may append to one file: each holds a lock on it (flock) while it writes, and readers wait for it. On
systems and file systems without such locks they have to take turns.
"""

from __future__ import annotations

import difflib
import errno
import gzip
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from posttrain.schema import AnswerRecord, FinishReason, Grade

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SAMPLE = "sample"  # the decoding whose records may repeat a task
ANSWERS = "answers.jsonl"
MAX_ERRORS_SHOWN = 20

RecordKey = tuple[str, int, int, str]  # method, seed, budget, task_id
MethodBudget = tuple[str, int]


class RecordError(ValueError):
    """Lines of a results file that are not AnswerRecords; the message lists up to 20 of them as file:line."""


def record_key(record: AnswerRecord) -> RecordKey:
    """What identifies an answer; an evaluation resumes by skipping the keys that are on file."""
    return (record.method, record.seed, record.budget, record.task_id)


def split_method(method: str) -> tuple[str, str]:
    """Policy and decoding of a method name: "oreo/best_of_n" is ("oreo", "best_of_n")."""
    policy, slash, decoding = method.rpartition("/")
    if not (policy and slash and decoding):
        raise ValueError(f"method is {method!r}, expected <policy>/<decoding> such as 'oreo/greedy'")
    return policy, decoding


def append_records(path: Path, records: Iterable[AnswerRecord]) -> None:
    """Add records to the end of a results file and sync it to disk before returning.

    A line that an interrupted write left without its newline was never acknowledged: it is cut off first.
    """
    append_lines(path, map(format_record, records))


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to the end of a file as `append_records` does."""
    added = "".join(line + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file, _locked(file, "LOCK_EX"):
        _cut_unfinished_line(file)
        file.write(added.encode())
        file.flush()
        os.fsync(file.fileno())


def format_record(record: AnswerRecord) -> str:
    """The JSON line of a record, without the newline. Raises ValueError when value is not finite."""
    told = {name: getattr(record, name) for name in _OPTIONAL if getattr(record, name)}
    row = {name: getattr(record, name) for name in _PARSERS if name not in _OPTIONAL}
    objects = {name: dict(told[name]) for name in ("grades", "tags") if name in told}
    objects |= {"tree": json.loads(told["tree"])} if "tree" in told else {}
    return json.dumps({**row, **told, **objects}, allow_nan=False)


def read_records(path: Path) -> tuple[AnswerRecord, ...]:
    """All records of a file in order. Raises RecordError on bad lines and on two answers with the same key."""
    records: list[AnswerRecord] = []
    errors: list[str] = []
    first_line: dict[RecordKey, int] = {}
    with _open_to_read(path) as file, _locked(file, "LOCK_SH"):
        for number, line in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            try:
                record = parse_record(line, where=where)
                _check_first(record, first_line.setdefault(record_key(record), number), number, where)
            except RecordError as error:
                errors.append(str(error))
                continue
            records.append(record)
    if errors:
        shown = errors[:MAX_ERRORS_SHOWN]
        more = f"\n... and {len(errors) - len(shown)} more" if len(errors) > len(shown) else ""
        raise RecordError("\n".join(shown) + more)
    return tuple(records)


def answers_file(folder: Path) -> Path:
    """Where a run folder has its answers: in answers.jsonl or, where only that is there, in answers.jsonl.gz."""
    plain, packed = folder / ANSWERS, folder / f"{ANSWERS}.gz"
    return packed if packed.exists() and not plain.exists() else plain


def write_packed_records(path: Path, records: Iterable[AnswerRecord]) -> None:
    """Write a gzipped results file anew; the same records give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(format_record(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


def parse_record(line: str, *, where: str) -> AnswerRecord:
    """One line as an AnswerRecord; `where` ("answers.jsonl:12") opens every error message."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        hint = "" if line.endswith("\n") else " (no newline at its end: was the writer interrupted?)"
        raise RecordError(f"{where}: not JSON: {error}{hint}") from None
    if not isinstance(row, dict):
        raise RecordError(f"{where}: expected a JSON object, got {type(row).__name__}")
    _check_keys(row, where)
    return AnswerRecord(**{name: _parse_field(name, row[name], where) for name in _PARSERS if name in row})


def group_records(records: Iterable[AnswerRecord]) -> dict[MethodBudget, tuple[AnswerRecord, ...]]:
    """Records by (method, budget), keys sorted, records in the order given."""
    groups: dict[MethodBudget, list[AnswerRecord]] = {}
    for record in records:
        groups.setdefault((record.method, record.budget), []).append(record)
    return {key: tuple(groups[key]) for key in sorted(groups)}


def load_run_records(folders: Sequence[Path]) -> dict[MethodBudget, tuple[AnswerRecord, ...]]:
    """Records of all folders' answers, by (method, budget); see `run_folder.seed_folders` for the folders.

    Raises RecordError when two folders hold the same method, seed, budget and task.
    """
    merged: list[AnswerRecord] = []
    owner: dict[RecordKey, Path] = {}
    for folder in folders:
        for record in read_records(answers_file(folder)):
            first = owner.setdefault(record_key(record), folder)
            if first != folder:
                raise RecordError(
                    f"{folder.name} and {first.name} both answer {record.task_id!r} with {record.method!r}, "
                    f"seed {record.seed}: was one seed written to two folders?"
                )
            merged.append(record)
    return group_records(merged)


def _check_first(record: AnswerRecord, first: int, number: int, where: str) -> None:
    if first != number and split_method(record.method)[1] != SAMPLE:
        raise RecordError(
            f"{where}: {record.method!r} answered task {record.task_id!r} before (seed {record.seed}, "
            f"budget {record.budget}, line {first}): was an evaluation run twice into one file?"
        )


def _check_keys(row: dict[str, Any], where: str) -> None:
    for name in row:
        if name not in _PARSERS:
            near = difflib.get_close_matches(name, _PARSERS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(_PARSERS)}"
            raise RecordError(f"{where}: unknown key {name!r}{hint}")
    missing = [name for name in _PARSERS if name not in row and name not in _OPTIONAL]
    if missing:
        raise RecordError(f"{where}: {', '.join(missing)}: missing")


def _parse_field(name: str, raw: Any, where: str) -> Any:
    try:
        return _PARSERS[name](raw)
    except ValueError as error:
        raise RecordError(f"{where}: {name}: got {json.dumps(raw)[:80]}, expected {error}") from None


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("a string")
    return raw


def _name(raw: Any) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError("a string that is not empty")
    return raw


def _method(raw: Any) -> str:
    policy, slash, decoding = _name(raw).rpartition("/")
    if not (policy and slash and decoding):
        raise ValueError("<policy>/<decoding>, such as 'oreo/greedy'")
    return raw


def _integer(minimum: int) -> Callable[[Any], int]:
    def parse(raw: Any) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or raw < minimum:
            raise ValueError(f"an integer, {minimum} or more")
        return raw

    return parse


def _grade(raw: Any) -> Grade:
    if raw not in list(Grade):
        raise ValueError("one of " + ", ".join(Grade))
    return Grade(raw)


def _finish_reason(raw: Any) -> FinishReason:
    if raw not in list(FinishReason):
        raise ValueError("one of " + ", ".join(FinishReason))
    return FinishReason(raw)


def _value(raw: Any) -> float | None:
    if raw is None:
        return None
    if not isinstance(raw, int | float) or isinstance(raw, bool) or not math.isfinite(raw):
        raise ValueError("a finite number or null")
    return float(raw)


def _pairs(parse: Callable[[Any], Any]) -> Callable[[Any], tuple[tuple[str, Any], ...]]:
    def parse_pairs(raw: Any) -> tuple[tuple[str, Any], ...]:
        if not isinstance(raw, dict):
            raise ValueError("an object")
        return tuple((_name(name), parse(value)) for name, value in raw.items())

    return parse_pairs


def _object_text(raw: Any) -> str:
    if not isinstance(raw, dict):
        raise ValueError("an object")
    return json.dumps(raw)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "task_id": _name,
    "method": _method,
    "seed": _integer(0),
    "budget": _integer(1),
    "text": _text,
    "grade": _grade,
    "finish_reason": _finish_reason,
    "n_generated_tokens": _integer(0),
    "value": _value,
    "key": _name,
    "grades": _pairs(_grade),
    "tags": _pairs(_text),
    "n_value_calls": _integer(0),
    "answer": _text,
    "n_steps": _integer(0),
    "tree": _object_text,
}
# Absent in a line that has none.
_OPTIONAL = ("key", "grades", "tags", "n_value_calls", "answer", "n_steps", "tree")


def _open_to_read(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def _cut_unfinished_line(file: IO[bytes]) -> None:
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


@contextmanager
def _locked(file: IO[Any], kind: str) -> Iterator[None]:
    """Hold fcntl's LOCK_EX (a writer) or LOCK_SH (a reader) on an open file, where there are locks."""
    if fcntl is not None:
        try:
            fcntl.flock(file, getattr(fcntl, kind))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
    yield  # closing the file gives the lock back
