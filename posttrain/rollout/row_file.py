"""The file that a collection appends to, with its summary beside it, and how a stopped collection goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from posttrain.data.rows import parse_trajectory, trajectory_to_json
from posttrain.data.tokenizer_card import summary_path
from posttrain.schema import Message, TrajectoryRow


class Asked(Protocol):
    """What a row answers: a problem, or a game."""

    @property
    def task_id(self) -> str: ...

    @property
    def prompt(self) -> str | tuple[Message, ...]: ...


AskedT = TypeVar("AskedT", bound=Asked)


class RowFile:
    """JSON lines in the order of the problems, n rows to each; a run appends whole chunks of problems.

    The summary file says of which run the rows are, so that answers of two models are never mixed in one file.
    """

    def __init__(self, path: Path, *, n_per_problem: int) -> None:
        self.path = path
        self.summary_path = summary_path(path)
        self.n_per_problem = n_per_problem

    def claim(self, run: Mapping[str, object]) -> None:
        """Start the file for `run`, or make sure that it is of the same run.

        Raises ValueError naming what differs, or when there are rows without a summary.
        """
        if not self.path.exists() or self.path.stat().st_size == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.write_summary({"is_complete": False, "run": run})
            self.path.touch()
            return
        if not self.summary_path.exists():
            raise ValueError(
                f"{self.path} holds rows, but {self.summary_path.name} is not beside it: nothing tells which run "
                "they are of. Choose another output, or move the file away"
            )
        before = json.loads(self.summary_path.read_text(encoding="utf-8"))["run"]
        now = json.loads(json.dumps(run))
        different = [
            f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in now if now[key] != before.get(key)
        ]
        if different:
            raise ValueError(
                f"{self.path} holds rows of another run: {'; '.join(different)}. Choose another output, or move the "
                "file away"
            )

    def resume(
        self,
        problems: Sequence[AskedT],
        *,
        problems_per_chunk: int,
        count: Callable[[AskedT, Sequence[TrajectoryRow]], None],
    ) -> int:
        """Problems whose rows stay, a whole number of chunks or all of them; what lies behind is cut off the file.

        Cutting back to a whole chunk makes the next chunk the one of an unbroken run, so that its batches, and with
        them the last bits of its log-probabilities, are the same. `count` is called for every problem that stays.
        Raises ValueError when the rows are of other problems.
        """
        ends = [end for _, _, end in self._problems_on_disk(problems)]
        n_kept = len(ends) if len(ends) == len(problems) else len(ends) - len(ends) % problems_per_chunk
        with self.path.open("r+b") as file:
            file.truncate(ends[n_kept - 1] if n_kept else 0)
        for problem, rows, _ in self._problems_on_disk(problems):
            count(problem, rows)
        return n_kept

    def append(self, rows: Sequence[TrajectoryRow]) -> None:
        """Add the rows of a chunk and wait until they are on the disk."""
        lines = (json.dumps(trajectory_to_json(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with self.path.open("ab") as file:
            file.write("".join(lines).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Replace the summary, whole or not at all."""
        temporary = self.summary_path.with_name(f".{self.summary_path.name}.tmp")
        temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.summary_path)

    def _problems_on_disk(self, problems: Sequence[AskedT]) -> Iterator[tuple[AskedT, list[TrajectoryRow], int]]:
        """Each problem that has all its rows, with them and the byte behind them."""
        rows: list[TrajectoryRow] = []
        end = 0
        for number, line in enumerate(self._whole_lines(), start=1):
            where = f"{self.path.name}:{number}"
            index = (number - 1) // self.n_per_problem
            if index == len(problems):
                raise ValueError(
                    f"{where}: there are rows beyond the {len(problems)} problems asked for. Raise the limit, or "
                    "choose another output"
                )
            row, problem = parse_trajectory(json.loads(line), where), problems[index]
            if (row.task_id, row.prompt) != (problem.task_id, problem.prompt):
                raise ValueError(
                    f"{where}: is an answer to {row.task_id!r} with prompt {row.prompt!r:.60}, expected "
                    f"{problem.task_id!r} with {problem.prompt!r:.60}: the problems or their order changed. "
                    "Choose another output"
                )
            rows.append(row)
            end += len(line)
            if len(rows) == self.n_per_problem:
                yield problem, rows, end
                rows = []

    def _whole_lines(self) -> Iterator[bytes]:
        """The lines up to one that a stop tore, which has no line break."""
        with self.path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
