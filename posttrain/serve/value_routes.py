"""/v1/values: what the value model says of prefixes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from posttrain.data.steps import step_ends
from posttrain.serve.errors import ApiError, JsonReply
from posttrain.serve.replies import ValueReply, errors
from posttrain.serve.requests import ConversationInput, TokensInput, ValueInput, ValuesRequest
from posttrain.serve.searching import together
from posttrain.serve.service import Service
from posttrain.serve.streaming import while_connected
from posttrain.serve.text_stream import TextStream

UNIT = "reward"  # of V: the expected reward from here on, in the unit of the rewards that the model was trained on


def value_routes(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", responses=errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504))

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
        encoded = [await _encoded(service, each) for each in inputs]

        async def read() -> tuple[list[dict[str, Any]], int]:
            async with (
                service.admission.turn(request.scope["caller"], len(encoded)),
                asyncio.timeout(service.limits.deadline_s),
            ):
                return await _rows(service, body, encoded)

        try:
            rows, n_read = await while_connected(request.receive, read())
        except TimeoutError:
            raise ApiError(504, "the deadline came first: send fewer inputs", code="deadline_exceeded") from None
        n_tokens = sum(len(each.token_ids) for each in encoded)
        usage = {
            "prompt_tokens": n_tokens,
            "total_tokens": n_tokens,
            "value_tokens": n_tokens,
            "value_tokens_cached": n_tokens - n_read,
        }
        units = {"unit": UNIT, "reward_map": service.units.reward_map, "beta": service.units.beta}
        return JsonReply({"object": "list", "model": name, **units, "data": rows, "usage": usage})

    return routes


@dataclass(frozen=True, slots=True)
class _Input:
    token_ids: tuple[int, ...]
    n_prompt: int  # tokens of the prompt


async def _encoded(service: Service, given: ValueInput) -> _Input:
    prompts = service.desk.prompts
    completion: tuple[int, ...] = ()
    if isinstance(given, TokensInput):
        prompt = prompts.of_ids(given.token_ids, param="input")
    else:
        is_chat = isinstance(given, ConversationInput)
        prompt = await (prompts.of_chat(given.messages) if is_chat else prompts.of_text(given.prompt))
        completion = await prompts.of_continuation(given.completion)
    n_tokens = len(prompt) + len(completion)
    if not 0 < n_tokens <= prompts.n_positions:
        raise ApiError(
            422,
            f"input: has {n_tokens} tokens, the model reads 1 to {prompts.n_positions}",
            code="context_length_exceeded",
            param="input",
        )
    return _Input(prompt + completion, len(prompt))


async def _rows(service: Service, body: ValuesRequest, inputs: Sequence[_Input]) -> tuple[list[dict[str, Any]], int]:
    """What is said of each input, and how many tokens were read for it all."""
    backend = service.backend
    if body.position == "last":
        sequences = [each.token_ids for each in inputs]
        last = await backend.score(sequences)
        backend.forget(sequences)
        at = [([len(ids) - 1], [value]) for ids, value in zip(sequences, last.values, strict=True)]
        n_read = last.n_tokens_read
    else:
        everywhere = await together(backend.score_all(each.token_ids) for each in inputs)
        at = []
        for each, scored in zip(inputs, everywhere, strict=True):
            all_positions = list(range(len(scored.values)))
            positions = _step_ends(service, body, each) if body.position == "step" else all_positions
            at.append((positions, [scored.values[position] for position in positions]))
        n_read = sum(scored.n_tokens_read for scored in everywhere)
    rows = [
        {
            "object": "value",
            "index": i,
            "token_ids": list(each.token_ids),
            "n_prompt_tokens": each.n_prompt,
            "positions": positions,
            "texts": _texts(service, each.token_ids, positions),
            "values": values,
        }
        for i, (each, (positions, values)) in enumerate(zip(inputs, at, strict=True))
    ]
    return rows, n_read


def _step_ends(service: Service, body: ValuesRequest, given: _Input) -> list[int]:
    """The tokens that end a step of the completion, and the last token."""
    completion = given.token_ids[given.n_prompt :]
    is_start = step_ends(service.backend.tokenizer, tuple(body.step.stop)).starts(completion)
    last = len(given.token_ids) - 1
    return [given.n_prompt + i - 1 for i, starts in enumerate(is_start) if starts and i > 0] + [last]


def _texts(service: Service, token_ids: Sequence[int], positions: Sequence[int]) -> list[str]:
    """What each position adds; joined they are the text up to the last one."""
    stream = TextStream(service.backend.tokenizer, ())
    pieces = [stream.push(token_id) for token_id in token_ids]
    pieces[-1] += stream.end(None)
    starts = [0, *(position + 1 for position in positions[:-1])]
    return ["".join(pieces[start : position + 1]) for start, position in zip(starts, positions, strict=True)]
