"""Who may ask: keys compared in constant time, loopback names without one, a rate for each key."""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from posttrain.serve.errors import ApiError, error_reply

MIN_KEY_CHARACTERS = 16
OPEN_ROUTES = frozenset({"/health"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
ANYONE = "anyone"


def read_keys(path: Path) -> list[str]:
    """One key a line; blank lines and those that begin with # are skipped.

    Raises ValueError for a weak key, or for none.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{path} holds no key: write one on a line of its own, or leave --api_key_file out")
    require_strong(keys, where=str(path))
    return keys


def require_strong(keys: Sequence[str], *, where: str) -> None:
    for place, key in enumerate(keys, start=1):
        if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"{where}: key {place} has {len(key)} characters, needs at least {MIN_KEY_CHARACTERS} of printable "
                "ASCII without spaces. Make one with: openssl rand -hex 32"
            )


class Keys:
    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [sha256(key.encode("ascii")).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def caller(self, authorization: str | None) -> str | None:
        """The name of the key in this header, `key1` for the first one; None for none of them.

        Digests of equal length are compared, and all of them, so that the time tells nothing.
        """
        digest = sha256(_credential(authorization or "").encode("utf-8", "replace")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return f"key{matches.index(True) + 1}" if any(matches) else None


class Rates:
    """A token bucket for each caller: a minute's worth at most, filled evenly."""

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, tuple[float, float]] = {}  # caller -> (requests left, when that was)

    def spend(self, caller: str) -> int | None:
        """Take one request; None, or the seconds after which one is there."""
        if self._per_minute == 0:
            return None
        now = time.monotonic()
        left, then = self._buckets.get(caller, (self._per_minute, now))
        left = min(self._per_minute, left + (now - then) * self._per_minute / 60)
        is_there = left >= 1
        self._buckets[caller] = (left - 1 if is_there else left, now)
        return None if is_there else math.ceil((1 - left) * 60 / self._per_minute)


class Gate:
    """Lets a request in, or answers it: 401 without a key that is known, 429 above the rate, 421 for another host.

    A server without keys answers loopback names alone: a page of the web whose name was made to point at this machine
    could otherwise read the answers.
    """

    def __init__(self, app: ASGIApp, keys: Keys, requests_per_minute: float) -> None:
        self._app = app
        self._keys = keys
        self._rates = Rates(requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope["caller"] = self._admit(scope)
            except ApiError as error:
                await error_reply(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> str:
        headers, path = Headers(scope=scope), scope["path"]
        if path in OPEN_ROUTES:
            return ANYONE
        caller = self._keys.caller(headers.get("authorization")) if self._keys else ANYONE
        if caller is None:
            raise _unknown(is_page=not path.startswith("/v1/"))
        if not self._keys and _host_name(headers.get("host", "")) not in LOOPBACK_NAMES:
            raise ApiError(
                421, "a server without keys answers to localhost only: ask for http://127.0.0.1", code="wrong_host"
            )
        wait_s = self._rates.spend(caller) if path.startswith("/v1/") else None
        if wait_s is not None:
            raise ApiError(
                429, f"this key's rate is spent. Try again in {wait_s} s", code="rate_limit", retry_after_s=wait_s
            )
        return caller


def _unknown(*, is_page: bool) -> ApiError:
    error = ApiError(401, "no key, or a wrong one: send Authorization: Bearer KEY", code="invalid_api_key")
    # A browser asks its user on a Basic challenge: any name, and the key as the password.
    error.headers["WWW-Authenticate"] = 'Basic realm="posttrain", charset="UTF-8"' if is_page else "Bearer"
    return error


def _credential(authorization: str) -> str:
    """The key in `Bearer KEY`, or the password of a Basic header."""
    scheme, _, rest = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return rest.strip()
        case "basic":
            try:
                return base64.b64decode(rest, validate=True).decode("utf-8").partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return ""
        case _:
            return ""


def _host_name(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower()
