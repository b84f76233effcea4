"""What the live server refuses, and how it says so."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest

from posttrain.sampling import Sample
from posttrain.serve.run import load_backend
from posttrain.serve.serve_config import ServeConfig
from tests.serve.tiny_server import N_POSITIONS, Served, served

KEYS = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210")
CHAT = {"model": "tiny-policy", "messages": [{"role": "user", "content": "1+2="}], "max_tokens": 8}
LONG = CHAT | {"max_tokens": 200, "search": {"algorithm": "best_of_n", "n": 16}}


@pytest.fixture(scope="module")
def locked(config: ServeConfig) -> Iterator[Served]:
    with served(config, keys=KEYS) as running:
        yield running


def chat(server: Served, **fields: Any) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    content = json.dumps(CHAT | fields)  # ASCII, so that it can hold what is no text
    return httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers, timeout=60)


def refusal(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of a reply, which has OpenAI's form."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


ROUTES = [
    ("GET", "/"),
    ("GET", "/page/page.js"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/values"),
    ("OPTIONS", "/v1/chat/completions"),
    ("GET", "/docs"),
    ("GET", "/nothing"),
    ("GET", "//health"),
    ("GET", "/health/"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", f"Token {KEYS[0]}", "Basic !", f"Bearer {KEYS[0]}0"]
)
def test_wrong_key_gets_401_on_every_route(locked: Served, method: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    refusal(httpx.request(method, locked.url + path, headers=headers), 401, "invalid_api_key")


def test_routes_of_the_key_test_are_all_routes_of_the_application(locked: Served) -> None:
    described = httpx.get(f"{locked.url}/openapi.json", headers={"Authorization": f"Bearer {KEYS[0]}"}).json()
    assert set(described["paths"]) - {"/health"} < {path for _, path in ROUTES}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens_and_health_needs_none(locked: Served, key: str) -> None:
    assert httpx.get(f"{locked.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert httpx.get(f"{locked.url}/", auth=("any name", key)).status_code == 200  # as a browser sends it
    assert httpx.get(f"{locked.url}/health").status_code == 200


def test_server_without_a_key_answers_to_loopback_names_alone(server: Served) -> None:
    refusal(httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.example"}), 421, "wrong_host")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": host}).status_code == 200


def test_no_other_site_is_allowed_to_read(server: Served) -> None:
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, headers={"Origin": "https://evil.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_over_the_cap_gets_413_before_it_is_read_whole(server: Served, is_chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 2**16

    content = chunks() if is_chunked else b"x" * (2**20 + 1)
    headers = {"Content-Type": "application/json"}
    refusal(httpx.post(f"{server.url}/v1/values", content=content, headers=headers), 413, "body_too_large")


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{}", "text/plain", 415, "media_type"),
        (b"{", "application/json", 422, "invalid_value"),
        (b'{"x": "\xff"}', "application/json", 400, "bad_request"),
        (b"[" * 2**19, "application/json", 400, "bad_request"),
    ],
    ids=["form", "half", "no UTF-8", "deep"],
)
def test_body_that_is_no_json_is_refused(server: Served, content: bytes, kind: str, status: int, code: str) -> None:
    reply = httpx.post(f"{server.url}/v1/values", content=content, headers={"Content-Type": kind})
    refusal(reply, status, code)


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"max_tokens": N_POSITIONS}, 422, "messages", f"has 19 tokens and max_tokens is {N_POSITIONS}, together 275"),
    ({"messages": [{"role": "user", "content": "1" * 300}]}, 422, "messages", "the model has 256 positions"),
    ({"n": 17}, 422, "n", "is 17; at most 16"),
    ({"search": {"beam_width": 13, "expansions": 5}}, 422, "search.beam_width x expansions", "64 or fewer"),
    ({"search": {"algorithm": "best_of_n", "n": 17}}, 422, "search.n", "16 or fewer"),
    ({"search": {"algorithm": "majority"}}, 422, "search.answer", "final_number"),
    ({"search": {}, "n": 2}, 422, "n", "one answer"),
    ({"search": {}, "temperature": 0}, 422, "temperature", "more than 0"),
    ({"search": {}, "stop": "a"}, 422, "stop", "step.stop"),
    ({"search": {"beam_widht": 3}}, 422, "search.beam_widht", "no such parameter"),
    ({"search": {"step": {"stop": [""]}}}, 422, "search.step.stop.0", "at least 1 character"),
    ({"tools": []}, 422, "tools", "no such parameter"),
    ({"presence_penalty": 0.5}, 422, "presence_penalty", "less than or equal to 0"),
    ({"top_logprobs": 21, "logprobs": True}, 422, "top_logprobs", "less than or equal to 20"),
    ({"top_logprobs": 3}, 422, "top_logprobs", "goes with logprobs: true"),
    ({"top_logprobs": 3, "logprobs": True, "search": {}}, 422, "logprobs", "is of plain samples"),
    ({"temperature": 1e-30}, 422, "temperature", "0 (greedy) or 0.001 to 2"),
    ({"max_completion_tokens": 3}, 422, "max_tokens", "give one of them"),
    ({"stream_options": {"include_usage": True}}, 422, "stream_options", "stream: true"),
    ({"seed": -1}, 422, "seed", "greater than or equal to 0"),
    ({"messages": []}, 422, "messages", "at least 1"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 422, "messages.0.content", "surrogate"),
    ({"model": "tiny-value"}, 404, "model", "the server has tiny-policy, tiny-value"),
]


@pytest.mark.parametrize(("fields", "status", "param", "said"), REFUSED)
def test_what_cannot_be_is_refused_with_its_field_and_reason_and_no_work(
    server: Served, fields: dict[str, Any], status: int, param: str, said: str
) -> None:
    before = server.backend.stats()
    reply = chat(server, **fields)
    assert reply.status_code == status, reply.text
    assert (reply.json()["error"]["param"], said in reply.json()["error"]["message"]) == (param, True), reply.text
    assert server.backend.stats() == before


def test_values_refuse_too_many_too_long_and_unknown_tokens(server: Served) -> None:
    def ask(given: Any) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/values", json={"input": given})

    assert "at most 64" in refusal(ask([{"token_ids": [3]}] * 65), 422, "invalid_value")["message"]
    refusal(ask({"token_ids": [3] * (N_POSITIONS + 1)}), 422, "context_length_exceeded")
    assert "knows 0 to" in refusal(ask({"token_ids": [10**6]}), 422, "invalid_value")["message"]


def test_server_without_a_value_model_says_what_to_do(config: ServeConfig) -> None:
    with served(replace(config, value_model=None)) as plain:
        error = refusal(chat(plain, search={}), 422, "invalid_value")
        assert "--value_model" in error["message"]
        assert chat(plain, search={"value_weight": 0}).status_code == 200
        refusal(httpx.post(f"{plain.url}/v1/values", json={"input": {"prompt": "1"}}), 422, "no_value_model")


def test_rate_of_a_key_is_its_own(config: ServeConfig) -> None:
    with served(replace(config, requests_per_minute=3), keys=KEYS) as limited:

        def ask(key: str, path: str = "/v1/models") -> httpx.Response:
            return httpx.get(limited.url + path, headers={"Authorization": f"Bearer {key}"})

        assert [ask(KEYS[0]).status_code for _ in range(4)] == [200, 200, 200, 429]
        # A bucket of 3 fills one request in 20 s.
        assert 15 <= int(ask(KEYS[0]).headers["Retry-After"]) <= 20
        assert ask(KEYS[1]).status_code == 200
        assert ask(KEYS[0], "/ready").status_code == 200


def test_full_queue_gets_429_with_a_time_to_come_back(config: ServeConfig) -> None:
    with served(replace(config, max_rows=16, max_queue=1)) as small:
        replies: list[httpx.Response] = []
        ask = lambda: replies.append(chat(small, **LONG))  # noqa: E731 - 16 rows each: one works, one waits
        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(reply.status_code for reply in replies)
        assert set(statuses) == {200, 429}
        busy = next(reply for reply in replies if reply.status_code == 429)
        refusal(busy, 429, "busy")
        assert int(busy.headers["Retry-After"]) >= 1


class Stuck:
    """A backend that answers `n_calls` calls for samples and then never again."""

    def __init__(self, config: ServeConfig, n_calls: int) -> None:
        self._backend = load_backend(config)
        self._n_left = n_calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def sample(self, *args: Any, **kwargs: Any) -> list[Sample]:
        self._n_left -= 1
        if self._n_left < 0:
            await asyncio.Event().wait()
        return await self._backend.sample(*args, **kwargs)


def test_deadline_ends_a_search_with_the_best_of_its_last_whole_round(config: ServeConfig) -> None:
    search = {"beam_width": 2, "expansions": 3, "step": {"stop": list("0123456789abcdef")}}
    fields = {"max_tokens": 100, "seed": 3, "search": {**search, "return_tree": True}}
    with served(replace(config, deadline_s=2.0), backend=Stuck(config, 1)) as stuck:
        reply = chat(stuck, **fields).json()
    assert reply["choices"][0]["finish_reason"] == "budget"
    assert reply["search"]["is_over_budget"]
    nodes = reply["search"]["tree"]["nodes"]
    assert reply["search"]["score"] == max(
        node["score"] for node in nodes if node["state"] == "open" and node["depth"]
    )


def test_deadline_ends_plain_samples_with_504_and_their_stream_with_an_error(config: ServeConfig) -> None:
    with served(replace(config, deadline_s=0.5), backend=Stuck(config, 0)) as stuck:
        refusal(chat(stuck), 504, "deadline_exceeded")
        refusal(chat(stuck, search={}), 504, "deadline_exceeded")
        assert '"code":"deadline_exceeded"' in chat(stuck, stream=True).text.splitlines()[-2]
        assert stuck.service.admission.n_admitted == 0


@pytest.mark.parametrize("fields", [{"stream": True}, {}], ids=["streamed", "at once"])
@pytest.mark.parametrize("search", [None, LONG["search"]], ids=["samples", "search"])
def test_client_that_goes_away_stops_its_work(server: Served, fields: dict[str, Any], search: Any) -> None:
    eventually(lambda: server.backend.stats().n_running == 0)
    body = CHAT | fields | {"max_tokens": 230, "n": 1 if search else 16, "search": search}
    with httpx.Client(timeout=60) as client:
        request = threading.Thread(target=lambda: abandoned(client, server, body))
        request.start()
        eventually(lambda: server.backend.stats().n_running > 0)
    request.join()
    eventually(lambda: server.backend.stats().n_running == 0)
    stopped_at = server.backend.stats().n_generated_tokens
    time.sleep(0.3)
    assert server.backend.stats().n_generated_tokens == stopped_at
    eventually(lambda: server.service.admission.n_admitted == 0)


def abandoned(client: httpx.Client, server: Served, body: dict[str, Any]) -> None:
    with suppress(httpx.HTTPError):
        client.post(f"{server.url}/v1/chat/completions", json=body)


def eventually(is_so: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
