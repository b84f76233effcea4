"""Work for a client that is still there, and answers sent as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from posttrain.serve.answering import Answer, Delta, Emit, Step
from posttrain.serve.errors import ApiError, error_body
from posttrain.serve.shapes import Writer

T = TypeVar("T")
KEEP_ALIVE_S = 15.0  # silence after which a comment is sent, so that no proxy takes the stream for dead
SLOW_READER_S = 30.0  # that a client may take after the deadline to read what is ready
_KEEP_ALIVE = b": still working\n\n"
_DONE = b"data: [DONE]\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. When the client goes away it is cancelled, and ApiError 499 tells the log alone."""
    doing, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ApiError(499, "the client has gone", code="client_gone")
        return doing.result()
    finally:
        doing.cancel()
        gone.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """The answer to one ask, as its pieces come.

    Nothing is sent before the work has got its turn, so a refusal is an ordinary reply with its own status. A failure
    after that is an event with an `error`, which OpenAI's client raises.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        work: Callable[[Emit], Awaitable[Answer]],
        turn: AbstractAsyncContextManager[None],
        writer: Writer,
        *,
        n_choices: int,
        has_usage_chunk: bool,
        ends_at: float,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._work = work
        self._turn = turn
        self._writer = writer
        self._n_choices = n_choices
        self._has_usage_chunk = has_usage_chunk
        self._ends_at = ends_at + SLOW_READER_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        pieces: asyncio.Queue[Delta | Step | None] = asyncio.Queue()
        has_turn = asyncio.Event()

        async def work() -> Answer:
            try:
                async with self._turn:
                    has_turn.set()
                    return await self._work(pieces.put_nowait)
            finally:
                has_turn.set()
                pieces.put_nowait(None)

        working = asyncio.create_task(work())
        try:
            async with asyncio.timeout_at(self._ends_at):
                await has_turn.wait()
                if working.done():
                    working.result()  # raises the refusal
                await self._send_all(send, pieces, working)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _send_all(
        self, send: Send, pieces: asyncio.Queue[Delta | Step | None], working: asyncio.Task[Answer]
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def put(data: bytes, *, is_last: bool = False) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": not is_last})

        await put(b"".join(map(_frame, self._writer.opening(self._n_choices))) or _KEEP_ALIVE)
        while (piece := await _next(pieces)) is not None:
            await put(piece if isinstance(piece, bytes) else self._written(piece))
        try:
            answer = await working
        except ApiError as error:
            await put(_frame(error.body()), is_last=True)
            return
        except Exception:
            await put(_frame(error_body(500, "the server failed; its log says why", code="internal")), is_last=True)
            raise
        closing = self._writer.closing(answer, has_usage_chunk=self._has_usage_chunk)
        await put(b"".join(map(_frame, closing)) + _DONE, is_last=True)

    def _written(self, piece: Delta | Step) -> bytes:
        if isinstance(piece, Step):
            name = piece.event["object"].removeprefix("search.")
            return b"event: " + name.encode("ascii") + b"\n" + _frame(self._writer.step(piece.event))
        return _frame(self._writer.delta(piece))


async def _next(pieces: asyncio.Queue[Delta | Step | None]) -> Delta | Step | bytes | None:
    try:
        return await asyncio.wait_for(pieces.get(), KEEP_ALIVE_S)
    except TimeoutError:
        return _KEEP_ALIVE


def _frame(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n\n"
