"""Which answers of an evaluation are on file, and whose a chunk of problems is: a run goes on, and can be shared.

An answer's key names what was asked and how: policy, prompt, protocol, decoding, seed. A run that is started again, by
one process or by several, answers chunks of which a key is missing, and adds the missing records alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from posttrain.evaluation.decoding import Decoding, methods_of
from posttrain.evaluation.records import RecordError, append_records, parse_record
from posttrain.schema import AnswerRecord, Problem

try:
    import fcntl
except ImportError:  # Windows: processes cannot share a run there
    fcntl = None

CLAIMS = ".claims"


def problem_key(problem: Problem, asked: Mapping[str, object]) -> str:
    """16 hex digits of a sha256 over the problem as it is put and graded, and over how it is answered."""
    put = [problem.task_id, problem.prompt, problem.answer, problem.grader]
    return hashlib.sha256(json.dumps([put, dict(asked)], sort_keys=True).encode()).hexdigest()[:16]


def expected_keys(key: str, decoding: Decoding, *, has_value: bool) -> set[str]:
    """The keys of the records that a decoding gives for one problem."""
    return {
        f"{key}/{how}:{budget}/{place}"
        for how, budget, n in methods_of(decoding, has_value=has_value)
        for place in range(n)
    }


def keyed(records: Iterable[AnswerRecord], keys: Mapping[str, str]) -> list[AnswerRecord]:
    """The records with their keys; `keys` holds that of each task."""
    seen: Counter[tuple[str, str, int]] = Counter()
    found = []
    for record in records:
        how = record.method.rpartition("/")[2]
        place = seen[record.task_id, how, record.budget]
        seen[record.task_id, how, record.budget] += 1
        found.append(replace(record, key=f"{keys[record.task_id]}/{how}:{record.budget}/{place}"))
    return found


class Ledger:
    """The records of one policy's name in a results file, as far as this process has read it."""

    def __init__(self, path: Path, *, name: str) -> None:
        self.path = path
        self.name = name
        self.records: dict[str, AnswerRecord] = {}
        self._n_bytes = 0

    def refresh(self) -> None:
        """Read what was added since. Raises RecordError for lines that are no records."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._n_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn by a stop, or being written
                self._n_bytes += len(line)
                record = parse_record(line.decode("utf-8"), where=f"{self.path.name}, byte {self._n_bytes}")
                if record.method.rpartition("/")[0] == self.name:
                    self._take(record)

    def require(self, methods: set[tuple[str, int]], keys: set[str]) -> None:
        """Raises FileExistsError when an answer by one of these methods and budgets has none of these keys."""
        for key, record in self.records.items():
            if key not in keys and (record.method.rpartition("/")[2], record.budget) in methods:
                raise FileExistsError(
                    f"{self.path} has other answers by {record.method}: of another model, prompt, protocol, sampling "
                    "or seed. Name another output or another name, or take the settings that they were made with"
                )

    def has(self, wanted: set[str]) -> bool:
        """Whether all of these keys are on file."""
        return wanted <= self.records.keys()

    def add(self, records: Sequence[AnswerRecord]) -> None:
        """Write the records that are not on file yet, and wait until they are on the disk."""
        self.refresh()
        append_records(self.path, [record for record in records if record.key not in self.records])
        self.refresh()

    @contextmanager
    def claim(self, chunk: str, *, is_waiting: bool) -> Iterator[bool]:
        """Hold a chunk; False where another process holds it. A process that dies gives back what it held.

        With `is_waiting` wait for the other process to finish it instead.
        """
        folder = self.path.parent / CLAIMS
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.name}-{chunk}.lock".replace("/", "_")).open("w") as file:
            yield _lock(file.fileno(), is_waiting=is_waiting)

    def _take(self, record: AnswerRecord) -> None:
        if record.key is None:
            raise RecordError(
                f"{self.path} has answers of {self.name!r} without keys, of an older version: name another output"
            )
        self.records.setdefault(record.key, replace(record, tree=None))  # trees would fill the memory


def _lock(file: int, *, is_waiting: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
