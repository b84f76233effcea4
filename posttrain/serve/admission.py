"""Who may work now: a bounded number of sequences at once, a bounded queue, callers taking turns."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from posttrain.serve.errors import ApiError

SHARE_OF_WORK_TO_WAIT = 0.5  # of the mean time that recent requests worked
SHORTEST_PATIENCE_S = 0.25
_WEIGHT_OF_NEWEST = 0.05  # in the running mean of that time


@dataclass(slots=True)
class _Waiter:
    rows: int
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """Rows are given in the order of coming within one caller, and to callers in turn.

    The next in turn waits until its rows are free and nobody overtakes it, so a wide search is not starved by narrow
    requests. Under overload an answer must not come late just because the queue is long: who has waited half as long
    as recent requests worked is turned away with 429, so those who get in take little longer than they would alone.
    """

    def __init__(self, *, rows: int, queue: int) -> None:
        self.n_free = self.rows = rows
        self.n_waiting = 0
        self.n_admitted = 0
        self.is_draining = False
        self._queue = queue
        self._waiting: dict[str, deque[_Waiter]] = {}  # by caller, in the order of their turns
        self._mean_work_s = 0.0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @asynccontextmanager
    async def turn(self, caller: str, rows: int) -> AsyncIterator[None]:
        """Wait for `rows` rows and hold them. Raises ApiError 429 (come later) or 503 (the server ends)."""
        rows = min(rows, self.rows)
        if self.is_draining:
            raise ApiError(503, "the server is shutting down: ask another one", code="draining", retry_after_s=1)
        if self.n_waiting >= self._queue:
            raise self._busy(f"{self.n_waiting} requests wait already")
        await self._wait(caller, rows)
        start = time.monotonic()
        try:
            yield
        finally:
            self._mean_work_s = self._mean_with(time.monotonic() - start)
            self.n_free += rows
            self.n_admitted -= 1
            self._admit()

    async def drained(self) -> None:
        """Refuse new work from now on, and return when all that was accepted is done."""
        self.is_draining = True
        await self._is_idle.wait()

    @property
    def patience_s(self) -> float:
        return max(SHORTEST_PATIENCE_S, SHARE_OF_WORK_TO_WAIT * self._mean_work_s)

    async def _wait(self, caller: str, rows: int) -> None:
        waiter = _Waiter(rows)
        self._waiting.setdefault(caller, deque()).append(waiter)
        self.n_waiting += 1
        self._admit()
        try:
            async with asyncio.timeout(self.patience_s):
                await waiter.admitted.wait()
        except BaseException as error:
            self._leave(caller, waiter)
            if isinstance(error, TimeoutError):
                raise self._busy(f"no place came free within {self.patience_s:.1f} s") from None
            raise

    def _leave(self, caller: str, waiter: _Waiter) -> None:
        """Whoever gives up in the moment that brings the rows hands them on."""
        if waiter.admitted.is_set():
            self.n_free += waiter.rows
            self.n_admitted -= 1
        else:
            self._waiting[caller].remove(waiter)
            if not self._waiting[caller]:
                del self._waiting[caller]
            self.n_waiting -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            caller, line = next(iter(self._waiting.items()))
            if line[0].rows > self.n_free:
                break
            waiter = line.popleft()
            del self._waiting[caller]
            if line:
                self._waiting[caller] = line  # behind the other callers
            self.n_waiting -= 1
            self.n_admitted += 1
            self.n_free -= waiter.rows
            waiter.admitted.set()
        if self.n_admitted or self.n_waiting:
            self._is_idle.clear()
        else:
            self._is_idle.set()

    def _busy(self, why: str) -> ApiError:
        wait_s = math.ceil(max(self.patience_s, self._mean_work_s))
        return ApiError(429, f"the server is busy: {why}. Try again in {wait_s} s", code="busy", retry_after_s=wait_s)

    def _mean_with(self, work_s: float) -> float:
        if self._mean_work_s == 0:
            return work_s
        return self._mean_work_s + _WEIGHT_OF_NEWEST * (work_s - self._mean_work_s)
