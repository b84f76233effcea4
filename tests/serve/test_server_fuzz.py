"""Requests made from the server's own OpenAPI document: none may make it fail."""

from __future__ import annotations

import copy
import json
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.serve.tiny_server import served_process

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, the schema-driven fuzzer")

# Bodies made for each route, half of them to fit its schema and half to break it. Each is sent in four forms.
N_BODIES = {"/v1/chat/completions": 1100, "/v1/completions": 850, "/v1/values": 550}
JSON = {"Content-Type": "application/json"}


@pytest.mark.slow
def test_10000_fuzzed_requests_get_no_5xx_and_leave_no_traceback(tiny_models: tuple[Path, Path]) -> None:
    with served_process(*tiny_models, "--requests_per_minute", "0") as (process, url, log):
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        statuses: Counter[int] = Counter()
        for result in schema.get_all_operations():
            operation = result.ok()
            n_bodies = N_BODIES.get(operation.path, 2)
            for mode in ("POSITIVE", "NEGATIVE") if operation.method == "post" else ("POSITIVE",):
                statuses += fuzz(operation, schemathesis.GenerationMode[mode], n_bodies // 2, url + operation.path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert statuses.total() >= 10_000
    assert max(statuses) < 500
    assert min(statuses[200], statuses[422]) > 500  # the fuzzer came past the door, and met it shut
    assert "Traceback" not in log.read_text()


def fuzz(operation: Any, mode: Any, n_bodies: int, url: str) -> Counter[int]:
    """The statuses that the requests to one operation got."""
    statuses: Counter[int] = Counter()
    session = requests.Session()

    @seed(5)
    @settings(
        max_examples=n_bodies,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        replies = [case.call(session=session)]
        if operation.method == "post":
            replies += [session.post(url, data=data, headers=JSON) for data in variants(case.body)]
        for reply in replies:
            statuses[reply.status_code] += 1
            assert reply.status_code < 500, (reply.request.body, reply.text)
            if reply.status_code >= 400:
                assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

    send()
    return statuses


def variants(body: Any) -> Iterator[bytes]:
    """A body so that it can be answered, cut somewhere, and with a byte changed."""
    body = answerable(body)
    text = json.dumps(body).encode("ascii")
    yield text
    chance = random.Random(text)
    yield text[: chance.randrange(len(text))]
    place = chance.randrange(len(text))
    yield text[:place] + bytes([chance.randrange(256)]) + text[place + 1 :]


def answerable(body: Any) -> Any:
    """With what no schema says: the names of the models, and that little is asked of them."""
    if not isinstance(body, dict):
        return {"model": "tiny-policy", "prompt": "1+", "max_tokens": 2}
    body = copy.deepcopy(body)
    body["model"] = "tiny-value" if "input" in body else "tiny-policy"
    body["max_tokens"] = 4
    for name in ("max_completion_tokens", "input") if "prompt" in body or "messages" in body else ("max_tokens",):
        body.pop(name, None)
    return body
