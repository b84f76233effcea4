"""The one thread that runs the networks of a server.

Many callers ask; one thread answers, a short piece of work at a time: a token of every row that is being sampled, then
the sequences that wait for their value, and round again. So nothing waits for a whole generation, asks of one kind
share a batch, and caches need no locks. Two threads would not be faster: a forward pass takes every core it is given,
and two at once wait for each other's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Worker(Protocol):
    """Work that is done in turns, all of them on the model thread."""

    def take_turn(self) -> bool:
        """Do one short piece of work; True while more is left."""
        ...

    def fail(self, error: Exception) -> None:
        """Give this error to those whose work the turn was that raised it."""
        ...

    def close(self) -> None:
        """Refuse more work and cancel what is in flight."""
        ...


class ModelThread:
    """Gives its workers turns, round and round; sleeps while none has work. An error costs a turn, not the thread."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._is_wanted = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def add(self, worker: Worker) -> None:
        self._workers.append(worker)

    def wake(self) -> None:
        """There is work. From any thread."""
        self._is_wanted.set()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """End after the turn that is being taken, and close the workers. Calling it again does nothing."""
        self._is_closed = True
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        is_busy = False
        while not self._is_closed:
            if not is_busy:
                self._is_wanted.wait()
            self._is_wanted.clear()
            is_busy = any([_turn_of(worker) for worker in tuple(self._workers)])  # a list: each gets its turn
        for worker in self._workers:
            worker.close()


def _turn_of(worker: Worker) -> bool:
    try:
        return worker.take_turn()
    except Exception as error:
        worker.fail(error)
        return True


class Inbox(Generic[T]):
    """What other threads have asked and the model thread has not yet looked at."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._asks: list[T] = []
        self._is_closed = False

    def put(self, ask: T) -> None:
        """Raises RuntimeError once it is closed."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError("closed: the networks are given back, nothing more can be asked of them")
            self._asks.append(ask)
        self._wake()

    def peek(self) -> tuple[T, ...]:
        with self._lock:
            return tuple(self._asks)

    def take(self) -> list[T]:
        with self._lock:
            asks, self._asks = self._asks, []
        return asks

    def close(self) -> list[T]:
        """Take the last ones and refuse more."""
        with self._lock:
            self._is_closed = True
        return self.take()


def open_future() -> Future[Any]:
    """A future that can be cancelled until it is answered or refused, since nothing ever marks it as running."""
    future: Future[Any] = Future()
    future.add_done_callback(_tell_of_cancelling)
    return future


def _tell_of_cancelling(future: Future[Any]) -> None:
    if future.cancelled():
        future.set_running_or_notify_cancel()  # those that wait for several futures hear of it by this alone


def answer(future: Future[T], result: T) -> None:
    """Does nothing to a future that was cancelled or answered before."""
    with suppress(InvalidStateError):
        future.set_result(result)


def refuse(future: Future[Any], error: Exception) -> None:
    """As `answer`, with an error."""
    with suppress(InvalidStateError):
        future.set_exception(error)
