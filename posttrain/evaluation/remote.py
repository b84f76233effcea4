"""A policy behind an OpenAI-compatible URL: whole answers as text, greedy or sampled."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from posttrain.sampling import SamplingParams
from posttrain.schema import FinishReason, Message

API_KEY_VARIABLE = "OPENAI_API_KEY"
N_TRIES = 5
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
FIRST_PAUSE_S = 0.5  # doubled with every try, unless the server names one in Retry-After
LONGEST_PAUSE_S = 30.0


class RemoteError(OSError):
    """A server that refuses, does not answer, or answers with something else than completions."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer as text."""

    text: str
    finish_reason: FinishReason
    n_tokens: int  # that the policy generated; 0 where a server does not count


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """One model of a server. The key is read from OPENAI_API_KEY and sent as a bearer token; there may be none."""

    url: str  # up to and with the version, http://127.0.0.1:8000/v1
    model: str
    n_parallel: int = 8
    seconds_per_request: float = 600.0

    def complete(
        self, prompts: Sequence[str], params: SamplingParams, n: int, *, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """n continuations of each text, by /completions."""
        bodies = [{"prompt": prompt} for prompt in prompts]
        return self._ask_all("completions", bodies, params, n, seeds)

    def chat(
        self, conversations: Sequence[Sequence[Message]], params: SamplingParams, n: int, *, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """n answers to each conversation, by /chat/completions: the server applies its own chat template."""
        bodies = [
            {"messages": [{"role": message.role, "content": message.content} for message in messages]}
            for messages in conversations
        ]
        return self._ask_all("chat/completions", bodies, params, n, seeds)

    def _ask_all(
        self, path: str, bodies: Sequence[dict[str, Any]], params: SamplingParams, n: int, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        settings = {
            "model": self.model,
            "n": n,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            **({"stop": list(params.stop)} if params.stop else {}),
        }

        def ask(one: tuple[dict[str, Any], int]) -> list[Completion]:
            body, seed = one
            return _completions(self._post(path, {**settings, **body, "seed": seed}), n)

        with ThreadPoolExecutor(self.n_parallel) as threads:
            return list(threads.map(ask, zip(bodies, seeds, strict=True)))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer's JSON. Raises RemoteError with what the server said, after N_TRIES where that may help."""
        address = f"{self.url.rstrip('/')}/{path}"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        for number in range(N_TRIES):
            is_last = number == N_TRIES - 1
            try:
                with urllib.request.urlopen(request, timeout=self.seconds_per_request) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code not in RETRIED or is_last:
                    said = error.read(500).decode("utf-8", errors="replace")
                    raise RemoteError(f"{address} answered {error.code}: {said}") from None
                pause = error.headers.get("Retry-After", "")
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if is_last:
                    reason = f"{address} does not answer ({error}): is the server up, and the URL right?"
                    raise RemoteError(reason) from None
                pause = ""
            except ValueError as error:
                raise RemoteError(f"{address} answered with something that is no JSON: {error}") from None
            time.sleep(min(float(pause) if pause.isdecimal() else FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S))
        raise AssertionError("the last try returns or raises")


def _completions(answer: Any, n: int) -> list[Completion]:
    """The choices in their order; servers count the tokens of all together, which are then shared out evenly."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != n:
            raise RemoteError(f"the server gave {len(choices)} choices, {n} were asked for: does it support n?")
        n_tokens, rest = divmod((answer.get("usage") or {}).get("completion_tokens", 0), n)
        return [
            Completion(_text(choice), _finish_reason(choice), n_tokens + (place < rest))
            for place, choice in enumerate(choices)
        ]
    except (KeyError, TypeError) as error:
        raise RemoteError(f"the server's answer lacks {error}: {json.dumps(answer)[:300]}") from None


def _text(choice: dict[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice["message"]["content"] or ""


def _finish_reason(choice: dict[str, Any]) -> FinishReason:
    return FinishReason.LENGTH if choice["finish_reason"] == "length" else FinishReason.STOP
