"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from posttrain.serve.answering import Answer, Emit, answer
from posttrain.serve.asked import Ask
from posttrain.serve.errors import JsonReply
from posttrain.serve.replies import ChatReply, CompletionReply, errors
from posttrain.serve.requests import ChatRequest, CompletionRequest, SamplingRequest
from posttrain.serve.service import LOG, Service
from posttrain.serve.shapes import ChatShape, Shape, TextShape, Writer
from posttrain.serve.streaming import EventStream, while_connected

_STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
_REFUSALS = errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504)


def completion_routes(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", responses=_REFUSALS)
    desk = service.desk

    @routes.post("/chat/completions", responses={200: {"model": ChatReply, "content": _STREAM}})
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; with `search`, by looking for the answer that the value model likes best."""
        return await _reply(service, request, body, await desk.of_chat(body), ChatShape())

    @routes.post("/completions", responses={200: {"model": CompletionReply, "content": _STREAM}})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text, or several; with `search`, one text by a search."""
        return await _reply(service, request, body, await desk.of_completion(body), TextShape())

    return routes


async def _reply(service: Service, request: Request, body: SamplingRequest, ask: Ask, shape: Shape) -> Response:
    tokenizer, request_id = service.backend.tokenizer, shape.id_prefix + request.scope["request_id"]
    writer = Writer(shape, body.model, tokenizer, ask.has_logprobs, request_id)
    ends_at = asyncio.get_running_loop().time() + service.limits.deadline_s
    turn = service.admission.turn(request.scope["caller"], ask.rows)
    if service.logs_prompts:
        LOG.info("%s asks %s", request_id, body.model_dump_json(exclude_unset=True))

    async def work(emit: Emit | None) -> Answer:
        answered = await answer(service.backend, ask, request_id=request_id, ends_at=ends_at, emit=emit)
        for seconds in answered.step_s:
            service.metrics.step_seconds.observe(seconds)
        if service.logs_prompts:
            LOG.info("%s answers %r", request_id, [choice.text for choice in answered.choices])
        return answered

    if ask.is_streamed:
        n_choices = ask.n * len(ask.prompts)
        return EventStream(
            work, turn, writer, n_choices=n_choices, has_usage_chunk=ask.has_usage_chunk, ends_at=ends_at
        )

    async def whole() -> Answer:
        async with turn:
            return await work(None)

    return JsonReply(writer.reply(await while_connected(request.receive, whole())))
