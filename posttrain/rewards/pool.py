"""Grading that no answer can hang: bounded work in the calling process, the rest in processes that are killed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from posttrain.rewards.graders import grader_named
from posttrain.rewards.symbolic import INSTALL_HINT
from posttrain.rewards.worker_process import WorkerProcess
from posttrain.schema import Grade


@dataclass(frozen=True, slots=True)
class GradeRequest:
    """One completion to grade."""

    gold: str
    completion: str
    grader: str  # one of GRADERS


@dataclass(frozen=True, slots=True)
class _Undecided:
    """An extracted answer that takes computer algebra."""

    index: int  # of its request
    grader: str
    gold: str
    answer: str


class GradingPool:
    """Grades completions; usable from several threads at once, beside CUDA and inside servers.

    What text and plain numbers settle is graded in the calling thread. The rest waits for one of `n_workers`
    processes, which start when the first answer needs them. A process that takes more than `time_limit_s` seconds for
    an answer, counted from when it starts on it, is killed and replaced, and the grade is TIMEOUT; so it is when the
    process takes more than `memory_limit_mb` MiB or dies. Its address space is limited to twice that (RLIMIT_AS).
    Model text is never evaluated: no eval, no exec, no sympify.
    """

    def __init__(self, *, n_workers: int, time_limit_s: float = 5.0, memory_limit_mb: int = 512) -> None:
        if n_workers < 1 or time_limit_s <= 0 or memory_limit_mb < 1:
            raise ValueError(
                f"n_workers, time_limit_s, memory_limit_mb are {n_workers}, {time_limit_s}, {memory_limit_mb}; "
                "all must be positive"
            )
        self._workers = [
            WorkerProcess(time_limit_s=time_limit_s, memory_limit_mb=memory_limit_mb) for _ in range(n_workers)
        ]
        self._idle: SimpleQueue[WorkerProcess] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(n_workers, thread_name_prefix="grading")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; answers still waiting are dropped, and their callers get a CancelledError."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """The grade of each request, in their order.

        Raises ValueError for an unknown grader or a gold answer that its grader cannot use, ImportError where
        math-verify is needed and missing, GradingError when a process cannot start or a grader fails in it.
        """
        grades: list[Grade | None] = []
        undecided: list[_Undecided] = []
        for index, request in enumerate(requests):
            grader = grader_named(request.grader)
            answer = grader.extract(request.completion)
            grade = grader.first_grade(request.gold, answer)
            grades.append(grade)
            if grade is None and answer is not None:
                undecided.append(_Undecided(index, request.grader, request.gold, answer))
        if undecided and find_spec("math_verify") is None:
            raise ImportError(INSTALL_HINT)
        for item, grade in zip(undecided, self._threads.map(self._verify, undecided), strict=True):
            grades[item.index] = grade
        return [grade for grade in grades if grade is not None]

    def _verify(self, item: _Undecided) -> Grade:
        worker = self._idle.get()
        try:
            return worker.verify(item.grader, item.gold, item.answer)
        finally:
            self._idle.put(worker)
