"""`posttrain serve` as a user starts it: what it refuses, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from posttrain.serve.serve_config import ServeConfig, require_key_beyond_loopback
from tests.serve.tiny_server import ServedProcess, served_process

CHAT = {"model": "tiny-policy", "messages": [{"role": "user", "content": "1+2="}], "max_tokens": 200}


@pytest.fixture
def process(tiny_models: tuple[Path, Path]) -> Iterator[ServedProcess]:
    with served_process(*tiny_models, "--batch_rows", "16", "--requests_per_minute", "0") as running:
        yield running


@pytest.mark.slow
def test_sigterm_under_load_loses_no_accepted_answer_and_exits_with_0(process: ServedProcess) -> None:
    server, url, _ = process
    replies: list[httpx.Response] = []
    accepted = threading.Semaphore(0)

    def ask(place: int) -> None:
        body: dict[str, Any] = CHAT | {"seed": place, "stream": place % 2 == 0}
        if place % 3 == 0:
            body["search"] = {"beam_width": 2, "expansions": 2}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as reply:
            accepted.release()
            reply.read()
            replies.append(reply)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(24)]
    for thread in threads:
        thread.start()
    for _ in range(3):  # the first streams have begun: the others are in the server or on their way
        accepted.acquire()
    admitted = wait_for_metric(url, "posttrain_requests_admitted", at_least=20)
    start = time.monotonic()
    server.send_signal(signal.SIGTERM)
    refused = first_refusal(url)
    for thread in threads:
        thread.join()
    assert server.wait(30) == 0
    assert time.monotonic() - start < 30
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert len(replies) == 24
    whole = [reply for reply in replies if reply.status_code == 200]
    assert len(whole) >= admitted
    for reply in whole:
        is_stream = reply.headers["content-type"].startswith("text/event-stream")
        assert reply.text.endswith("data: [DONE]\n\n") if is_stream else reply.json()["choices"][0]["finish_reason"]


def wait_for_metric(url: str, name: str, *, at_least: float) -> float:
    while True:
        lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
        value = next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))
        if value >= at_least:
            return value


def first_refusal(url: str) -> httpx.Response:
    """A new request once the signal has been seen; the server still answers, so that a router can go elsewhere."""
    while httpx.get(f"{url}/ready", timeout=60).status_code == 200:
        time.sleep(0.01)
    return httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"max_tokens": 1}, timeout=60)


@pytest.mark.slow
def test_logs_hold_routes_and_statuses_and_no_prompt(process: ServedProcess) -> None:
    server, url, log_file = process
    httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"messages": [{"role": "user", "content": "6*7=6*7"}]})
    httpx.get(f"{url}/secret-path?key=secret-query")
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
    log = log_file.read_text()
    assert "POST /v1/chat/completions 200" in log
    assert not [word for word in ("6*7", "secret") if word in log]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(ValueError, match="there is no key"):
        require_key_beyond_loopback(host, n_keys=0)
    require_key_beyond_loopback(host, n_keys=1)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    require_key_beyond_loopback(host, n_keys=0)


def test_command_refuses_an_open_address_before_it_loads_anything() -> None:
    command = [sys.executable, "-m", "posttrain", "serve", "--model", "no-such-model", "--host", "0.0.0.0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "--api_key_file FILE or set POSTTRAIN_API_KEY" in ended.stderr


@pytest.mark.parametrize(("field", "value"), [("port", 70000), ("max_queue", 0), ("requests_per_minute", -1.0)])
def test_config_refuses_what_cannot_be(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=str(value)):
        ServeConfig(model="m", **{field: value})
