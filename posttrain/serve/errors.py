"""Errors as OpenAI's clients read them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}  # of the rest: by the first digit
MAX_SHOWN_PROBLEMS = 5
_NAME = re.compile(r"[a-z_]+|\d+")
_TYPE_NAMES = frozenset({"str", "int", "float", "bool"})


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    error: ErrorBody


class ApiError(Exception):
    """A refusal with its HTTP status; the message says what came, what is needed, and the likely fix."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, code=self.code, param=self.param)


class JsonReply(Response):
    """JSON in ASCII: any text can be sent back, half a surrogate pair too."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_reply(error: ApiError) -> JsonReply:
    return JsonReply(error.body(), status_code=error.status, headers=error.headers)


def install_error_replies(app: FastAPI) -> None:
    """Give every error that leaves a route this one form."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_reply(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_reply(_of_problems(error.errors()))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        body = error_body(error.status_code, str(error.detail), code=code)
        return JsonReply(body, status_code=error.status_code, headers=error.headers)

    async def failed(_: Request, __: Exception) -> Response:
        return JsonReply(error_body(500, "the server failed; its log says why", code="internal"), status_code=500)

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, failed)


def _of_problems(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """One error for all that is wrong with a body."""
    said = list(dict.fromkeys(map(_said, problems)))
    if len(said) > MAX_SHOWN_PROBLEMS:
        said[MAX_SHOWN_PROBLEMS:] = [f"and {len(said) - MAX_SHOWN_PROBLEMS} more"]
    first = problems[0]
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return ApiError(422, "; ".join(said), code=code, param=_field(first) or None)


def _said(problem: Mapping[str, Any]) -> str:
    field = _field(problem) or "body"
    if problem["type"] == "extra_forbidden":
        return f"{field}: this server has no such parameter; leave it out"
    return f"{field}: {problem['msg'].removeprefix('Value error, ')}"


def _field(problem: Mapping[str, Any]) -> str:
    """`search.step.stop` for a problem's place in the body; what pydantic says of types there is left out."""
    if problem["type"] == "json_invalid":
        return ""
    place = [str(part) for part in problem["loc"] if part != "body"]
    return ".".join(part for part in place if _NAME.fullmatch(part) and part not in _TYPE_NAMES)
