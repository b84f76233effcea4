"""/v1/values: what the value model says of prefixes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from posttrain.data.steps import step_ends
from posttrain.serve.errors import ApiError, JsonReply
from posttrain.serve.replies import ValueReply, errors
from posttrain.serve.requests import ConversationInput, TextInput, ValueInput, ValuesRequest
from posttrain.serve.searching import together
from posttrain.serve.service import Service
from posttrain.serve.streaming import while_connected

UNIT = "reward"  # of V: the expected reward from here on, in the unit of the rewards that the model was trained on


def value_routes(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", responses=errors(401, 404, 408, 413, 415, 422, 429, 503, 504))

    @routes.post("/values", responses={200: {"model": ValueReply}})
    async def values(body: ValuesRequest, request: Request) -> Response:
        """V at the last token, at the ends of steps, or at every token of each input."""
        name = service.backend.value_name
        if name is None:
            raise ApiError(422, "the server has no value model: start it with --value_model", code="no_value_model")
        service.desk.require_model(name if body.model is None else body.model, name)
        inputs = body.input if isinstance(body.input, list) else [body.input]
        if len(inputs) > service.limits.value_inputs:
            raise ApiError(
                422,
                f"input: has {len(inputs)} entries, at most {service.limits.value_inputs} are read in one request",
                code="invalid_value",
                param="input",
            )
        sequences = [await _tokens(service, each) for each in inputs]

        async def read() -> list[dict[str, Any]]:
            async with (
                service.admission.turn(request.scope["caller"], len(sequences)),
                asyncio.timeout(service.limits.deadline_s),
            ):
                return await _rows(service, body, sequences)

        try:
            rows = await while_connected(request.receive, read())
        except TimeoutError:
            raise ApiError(504, "the deadline came first: send fewer inputs", code="deadline_exceeded") from None
        n_tokens = sum(map(len, sequences))
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens, "value_tokens": n_tokens}
        return JsonReply({"object": "list", "model": name, "unit": UNIT, "data": rows, "usage": usage})

    return routes


async def _tokens(service: Service, given: ValueInput) -> tuple[int, ...]:
    prompts = service.desk.prompts
    if isinstance(given, ConversationInput):
        token_ids = await prompts.of_chat(given.messages)
    elif isinstance(given, TextInput):
        token_ids = await prompts.of_continued_text(given.prompt, given.completion)
    else:
        token_ids = prompts.of_ids(given.token_ids, param="input")
    if not 0 < len(token_ids) <= prompts.n_positions:
        raise ApiError(
            422,
            f"input: has {len(token_ids)} tokens, the model reads 1 to {prompts.n_positions}",
            code="context_length_exceeded",
            param="input",
        )
    return token_ids


async def _rows(service: Service, body: ValuesRequest, sequences: Sequence[tuple[int, ...]]) -> list[dict[str, Any]]:
    backend = service.backend
    if body.position == "last":
        last = await backend.score(sequences)
        backend.forget(sequences)
        return [
            _row(i, ids, [len(ids) - 1], [value]) for i, (ids, value) in enumerate(zip(sequences, last, strict=True))
        ]
    everywhere = await together(backend.score_all(ids) for ids in sequences)
    rows: list[dict[str, Any]] = []
    for ids, at_all in zip(sequences, everywhere, strict=True):
        positions = _step_positions(service, body, ids) if body.position == "step" else list(range(len(ids)))
        rows.append(_row(len(rows), ids, positions, [at_all[position] for position in positions]))
    return rows


def _step_positions(service: Service, body: ValuesRequest, token_ids: Sequence[int]) -> list[int]:
    """The tokens that end a step, and the last one."""
    is_start = step_ends(service.backend.tokenizer, tuple(body.step.stop)).starts(list(token_ids))
    return [i - 1 for i, starts in enumerate(is_start) if starts and i > 0] + [len(token_ids) - 1]


def _row(index: int, ids: Sequence[int], positions: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
    return {
        "object": "value",
        "index": index,
        "token_ids": list(ids),
        "positions": list(positions),
        "values": list(values),
    }
