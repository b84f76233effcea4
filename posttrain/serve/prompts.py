"""Texts and conversations of requests to token ids, with the refusals that need a tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat import render_ids
from posttrain.data.encode import encode_prompt
from posttrain.schema import Message
from posttrain.serve.errors import ApiError
from posttrain.serve.requests import ChatMessage, CompletionRequest

T = TypeVar("T")


class Prompts:
    """Encodes on a thread: a long text must not hold up the other requests."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, n_positions: int) -> None:
        self.tokenizer = tokenizer
        self.n_positions = n_positions

    async def of_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """The rendered conversation, with a turn opened for the assistant unless it has the last word already."""
        self.require_chat_template()
        said = [Message(message.role, _content(message)) for message in messages]
        opens_turn = messages[-1].role != "assistant"
        try:
            return await _on_thread(lambda: tuple(render_ids(said, self.tokenizer, opens_turn=opens_turn)))
        except TemplateError as error:
            raise ApiError(
                422, f"messages: the model's chat template refuses them: {error}", code="messages", param="messages"
            ) from error

    async def of_completion(self, prompt: CompletionRequest) -> list[tuple[int, ...]]:
        """Each prompt of the request, in order."""
        given = prompt.prompt
        if isinstance(given, str):
            return [await self.of_text(given)]
        texts = [text for text in given if isinstance(text, str)]
        if texts:
            return [await self.of_text(text) for text in texts]
        lists = [ids for ids in given if isinstance(ids, list)]
        lists = lists or [[token_id for token_id in given if isinstance(token_id, int)]]
        return [self.of_ids(ids, param="prompt") for ids in lists]

    async def of_text(self, text: str) -> tuple[int, ...]:
        """With the tokenizer's own BOS."""
        return await _on_thread(lambda: tuple(encode_prompt(text, self.tokenizer)))

    async def of_continuation(self, completion: str | Sequence[int]) -> tuple[int, ...]:
        """Without BOS: prompt and completion are tokenised apart and joined, as training rows are."""
        if not isinstance(completion, str):
            return self.of_ids(completion, param="input.completion")
        return await _on_thread(
            lambda: tuple(self.tokenizer(completion, add_special_tokens=False)["input_ids"]) if completion else ()
        )

    def of_ids(self, token_ids: Sequence[int], *, param: str) -> tuple[int, ...]:
        n_vocabulary = len(self.tokenizer)
        if max(token_ids) >= n_vocabulary:
            raise ApiError(
                422,
                f"{param}: has the token id {max(token_ids)}, the tokenizer knows 0 to {n_vocabulary - 1}",
                code="invalid_value",
                param=param,
            )
        return tuple(token_ids)

    def require_room(self, prompt: Sequence[int], max_tokens: int | None, *, param: str) -> int:
        """The tokens that may follow: max_tokens, or all that fit. Raises ApiError when they do not fit."""
        n_free = self.n_positions - len(prompt)
        if not prompt:
            raise ApiError(422, f"{param}: has no tokens, needs at least one", code="invalid_value", param=param)
        wanted = 1 if max_tokens is None else max_tokens
        if wanted > n_free:
            raise ApiError(
                422,
                f"{param} has {len(prompt)} tokens and max_tokens is {wanted}, together {len(prompt) + wanted}: the "
                f"model has {self.n_positions} positions. Shorten the prompt or ask for fewer tokens",
                code="context_length_exceeded",
                param=param,
            )
        return n_free if max_tokens is None else max_tokens

    def require_chat_template(self) -> None:
        if self.tokenizer.chat_template is None:
            raise ApiError(
                422,
                "messages: the model has no chat template; send the text that it should continue to /v1/completions",
                code="no_chat_template",
                param="messages",
            )


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content)


async def _on_thread(encode: Callable[[], T]) -> T:
    return await asyncio.to_thread(encode)
