"""What every request passes outside the routes: its log line and headers, and the size of its body."""

from __future__ import annotations

import asyncio
import logging
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posttrain.serve.errors import ApiError, error_reply
from posttrain.serve.metrics import Metrics

LOG = logging.getLogger("posttrain.serve")
BODY_S = 30.0  # in which a body has to arrive
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Observed:
    """Counts, times and logs each request by its route; never its body."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500
        scope["request_id"] = uuid4().hex

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers["X-Request-Id"] = scope["request_id"]
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._note(scope, status, time.monotonic() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["route"].path if "route" in scope else "none"
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        LOG.info(
            "%s %s %s %d %.0f ms %s",
            scope["request_id"],
            scope["method"],
            route,
            status,
            1000 * seconds,
            scope.get("caller", "unknown"),
        )


class WholeBody:
    """Hands bodies on whole, JSON of at most `max_bytes`; answers 413, 415 or 408 before anything reads them.

    A media type that a form cannot send keeps pages of other sites from posting: browsers ask first for JSON, and are
    told no.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
        except ApiError as error:
            await error_reply(error)(scope, receive, send)
            return
        replayed = False

        async def receive_whole() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_whole, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large()
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be JSON: send Content-Type: application/json", code="media_type")
        parts, n_bytes, is_whole = [], 0, False
        try:
            async with asyncio.timeout(BODY_S):
                while not is_whole:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "the client has gone", code="client_gone")
                    parts.append(message.get("body", b""))
                    n_bytes += len(parts[-1])
                    if n_bytes > self._max_bytes:
                        raise self._too_large()
                    is_whole = not message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_S:.0f} s", code="slow_body") from None
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._max_bytes} bytes", code="body_too_large")
