from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from posttrain.serve import admission as module
from posttrain.serve.admission import Admission
from posttrain.serve.errors import ApiError


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


class Guest:
    """A task that holds rows from its turn until it is told to leave."""

    def __init__(self, admission: Admission, caller: str, rows: int, order: list[str]) -> None:
        self.leave = asyncio.Event()
        self.name = f"{caller}{rows}"
        self._order = order
        self.task = asyncio.create_task(self._stay(admission, caller, rows))

    async def _stay(self, admission: Admission, caller: str, rows: int) -> None:
        async with admission.turn(caller, rows):
            self._order.append(self.name)
            await self.leave.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_callers_take_turns_and_nobody_overtakes_the_one_whose_turn_it_is() -> None:
    async def test() -> None:
        admission, order = Admission(rows=4, queue=9), []
        first = Guest(admission, "a", 4, order)
        await settle()
        guests = [Guest(admission, *asked, order) for asked in (("a", 1), ("a", 2), ("b", 4), ("c", 1))]
        await settle()
        first.leave.set()
        await settle()
        # 3 rows are free. a has had its turn, b4 is next and does not fit: c1 and a2, which would, wait behind it.
        assert order == ["a4", "a1"]
        guests[0].leave.set()
        await settle()
        assert order == ["a4", "a1", "b4"]
        guests[2].leave.set()
        await settle()
        assert order == ["a4", "a1", "b4", "c1", "a2"]
        for guest in guests:
            guest.leave.set()
        await settle()
        assert (admission.n_free, admission.n_admitted, admission.n_waiting) == (4, 0, 0)

    run(test)


def test_full_queue_is_refused_at_once_and_impatience_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST_PATIENCE_S", 0.05)

    async def test() -> None:
        admission, order = Admission(rows=1, queue=1), []
        holder, waiter = (Guest(admission, "a", 1, order) for _ in range(2))
        await settle()
        with pytest.raises(ApiError, match="1 requests wait already") as refused:
            async with admission.turn("b", 1):
                pass
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        with pytest.raises(ApiError, match="no place came free"):
            await waiter.task
        holder.leave.set()
        await holder.task
        assert (admission.n_free, admission.n_waiting) == (1, 0)

    run(test)


def test_who_gives_up_leaves_nothing_behind() -> None:
    async def test() -> None:
        admission, order = Admission(rows=1, queue=9), []
        holder, gone, last = (Guest(admission, name, 1, order) for name in "abc")
        await settle()
        gone.task.cancel()
        await settle()
        assert admission.n_waiting == 1
        holder.leave.set()
        last.task.cancel()  # in the same moment in which the row comes to it
        await settle()
        assert (admission.n_free, admission.n_admitted, admission.n_waiting) == (1, 0, 0)

    run(test)


def test_draining_finishes_who_is_there_and_refuses_who_comes() -> None:
    async def test() -> None:
        admission, order = Admission(rows=1, queue=9), []
        working, waiting = (Guest(admission, "a", 1, order) for _ in range(2))
        await settle()
        drained = asyncio.create_task(admission.drained())
        await settle()
        with pytest.raises(ApiError, match="shutting down") as refused:
            async with admission.turn("b", 1):
                pass
        assert refused.value.status == 503
        working.leave.set()
        await settle()
        assert order == ["a1", "a1"]
        assert not drained.done()
        waiting.leave.set()
        await drained

    run(test)


def test_request_for_more_rows_than_there_are_takes_them_all() -> None:
    async def test() -> None:
        admission = Admission(rows=4, queue=9)
        async with admission.turn("a", 64):
            assert admission.n_free == 0
        assert admission.n_free == 4

    run(test)
