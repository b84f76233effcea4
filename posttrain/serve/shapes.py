"""Answers in the two shapes of OpenAI's API: chat completions and text completions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from posttrain import __version__
from posttrain.serve.answering import Answer, Choice, Delta


class Shape(Protocol):
    """What differs between the two."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk's choice; None: nothing is said before the first text."""
        ...

    def delta(self, delta: Delta, logprobs: TokenLogprobs | None) -> dict[str, Any]: ...

    def silence(self, index: int, finish_reason: str | None) -> dict[str, Any]:
        """A choice without text: the last one, or one that goes with a search event."""
        ...

    def whole(self, index: int, choice: Choice, logprobs: TokenLogprobs | None) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: str
    logp: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """log π of chosen tokens at temperature 1, and of the likeliest tokens at the place of each."""

    chosen: list[TokenLogprob]
    top: list[list[TokenLogprob]] | None  # None: not asked for


class ChatShape:
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any] | None:
        return _chat_chunk(index, {"role": "assistant", "content": ""})

    def delta(self, delta: Delta, logprobs: TokenLogprobs | None) -> dict[str, Any]:
        return _chat_chunk(delta.choice, {"content": delta.text}, logprobs)

    def silence(self, index: int, finish_reason: str | None) -> dict[str, Any]:
        return {**_chat_chunk(index, {}), "finish_reason": finish_reason}

    def whole(self, index: int, choice: Choice, logprobs: TokenLogprobs | None) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text},
            "logprobs": _chat_logprobs(logprobs),
            "finish_reason": choice.finish_reason,
        }


class TextShape:
    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def delta(self, delta: Delta, logprobs: TokenLogprobs | None) -> dict[str, Any]:
        return _text_choice(delta.choice, delta.text, None, logprobs)

    def silence(self, index: int, finish_reason: str | None) -> dict[str, Any]:
        return _text_choice(index, "", finish_reason, None)

    def whole(self, index: int, choice: Choice, logprobs: TokenLogprobs | None) -> dict[str, Any]:
        return _text_choice(index, choice.text, choice.finish_reason, logprobs)


@dataclass(frozen=True, slots=True)
class Writer:
    """The replies to one request."""

    shape: Shape
    model: str
    tokenizer: PreTrainedTokenizerBase
    has_logprobs: bool
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def reply(self, answer: Answer) -> dict[str, Any]:
        choices = [self.shape.whole(i, choice, self._logprobs(choice)) for i, choice in enumerate(answer.choices)]
        reply = {**self._head(self.shape.whole_object), "choices": choices, "usage": answer.usage}
        return reply if answer.search is None else {**reply, "search": answer.search}

    def opening(self, n_choices: int) -> list[dict[str, Any]]:
        choices = [self.shape.opening(index) for index in range(n_choices)]
        return [self._chunk([choice]) for choice in choices if choice is not None]

    def delta(self, delta: Delta) -> dict[str, Any]:
        return self._chunk([self.shape.delta(delta, self._logprobs(delta))])

    def step(self, event: dict[str, Any]) -> dict[str, Any]:
        """A search event that is a chunk with an empty delta besides, for clients that take every event as a chunk."""
        return {**self._chunk([self.shape.silence(0, None)]), **event}

    def closing(self, answer: Answer, *, has_usage_chunk: bool) -> list[dict[str, Any]]:
        chunks = [
            self._chunk([self.shape.silence(index, choice.finish_reason)])
            for index, choice in enumerate(answer.choices)
        ]
        return [*chunks, {**self._chunk([]), "usage": answer.usage}] if has_usage_chunk else chunks

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head(self.shape.chunk_object), "choices": choices}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"posttrain-{__version__}",
        }

    def _logprobs(self, said: Choice | Delta) -> TokenLogprobs | None:
        if not self.has_logprobs:
            return None
        chosen = self._named(zip(said.token_ids, said.logp, strict=True))
        return TokenLogprobs(chosen, [self._named(at) for at in said.top] if said.top else None)

    def _named(self, tokens: Iterable[tuple[int, float]]) -> list[TokenLogprob]:
        return [TokenLogprob(str(self.tokenizer.decode([token_id])), logp) for token_id, logp in tokens]


def _chat_chunk(index: int, delta: dict[str, str], logprobs: TokenLogprobs | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": _chat_logprobs(logprobs), "finish_reason": None}


def _chat_logprobs(logprobs: TokenLogprobs | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    top = logprobs.top or [[] for _ in logprobs.chosen]
    content = [
        {**_chat_token(chosen), "top_logprobs": [_chat_token(one) for one in at]}
        for chosen, at in zip(logprobs.chosen, top, strict=True)
    ]
    return {"content": content, "refusal": None}


def _chat_token(said: TokenLogprob) -> dict[str, Any]:
    return {"token": said.token, "logprob": said.logp, "bytes": list(said.token.encode("utf-8"))}


def _text_choice(index: int, text: str, finish_reason: str | None, logprobs: TokenLogprobs | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": _text_logprobs(logprobs), "finish_reason": finish_reason}


def _text_logprobs(logprobs: TokenLogprobs | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    top = None
    if logprobs.top is not None:
        top = [_by_text([*at, chosen]) for chosen, at in zip(logprobs.chosen, logprobs.top, strict=True)]
    return {
        "tokens": [chosen.token for chosen in logprobs.chosen],
        "token_logprobs": [chosen.logp for chosen in logprobs.chosen],
        "top_logprobs": top,
        "text_offset": None,
    }


def _by_text(said: Sequence[TokenLogprob]) -> dict[str, float]:
    """OpenAI's older shape names tokens by their texts alone; of those with one text the first stays."""
    by_text: dict[str, float] = {}
    for one in said:
        by_text.setdefault(one.token, one.logp)
    return by_text
