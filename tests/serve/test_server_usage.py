"""What replies and /metrics say that requests have cost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from posttrain.serve.serve_config import ServeConfig
from tests.serve.tiny_server import Served, served

SEARCH = {"algorithm": "beam", "beam_width": 2, "expansions": 3, "max_steps": 4, "step": {"max_tokens": 20}}
BODY: dict[str, Any] = {
    "model": "tiny-policy",
    "messages": [{"role": "user", "content": "1+2="}],
    "max_tokens": 40,
    "seed": 5,
    "search": SEARCH,
}


def test_usage_of_a_search_counts_its_tree(server: Served) -> None:
    body = {**BODY, "search": {**SEARCH, "return_tree": True}}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
    usage, nodes = reply["usage"], reply["search"]["tree"]["nodes"]
    assert usage["pruned"] == sum(node["state"] == "pruned" for node in nodes)
    assert usage["value_calls"] == sum(node["value"] is not None for node in nodes)
    assert usage["generated_tokens"] > usage["completion_tokens"]
    assert usage["search_steps"] == max(node["depth"] for node in nodes)


def test_metrics_count_what_was_done(server: Served) -> None:
    def count(name: str) -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ("posttrain_generated_tokens_total", "posttrain_search_step_seconds_count")
    before = [count(name) for name in names]
    answered = 'posttrain_http_requests_total{route="/v1/chat/completions",status="200"}'
    n_answered = count(answered)
    usage = httpx.post(f"{server.url}/v1/chat/completions", json=BODY).json()["usage"]
    after = [count(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [usage["generated_tokens"], usage["search_steps"]]
    assert count(answered) == n_answered + 1


def test_value_tokens_that_requests_at_once_report_add_up_to_the_metrics(config: ServeConfig) -> None:
    asked: list[tuple[str, Any]] = [("chat/completions", {**BODY, "seed": i % 4}) for i in range(7)]
    asked += [("completions", {"model": "tiny-policy", "prompt": "1+2=", "max_tokens": 40, "search": SEARCH})]
    given = {"prompt": "1+2=\n", "completion": "3\n4a\n5"}
    asked += [("values", {"input": [given, given], "position": where}) for where in ("last", "step", "all")]
    with served(config) as own, ThreadPoolExecutor(len(asked)) as callers:
        replies = callers.map(lambda ask: httpx.post(f"{own.url}/v1/{ask[0]}", json=ask[1], timeout=60).json(), asked)
        usages = [reply["usage"] for reply in replies]
        total = httpx.get(f"{own.url}/metrics").text
    n_tokens, n_cached = (sum(usage[name] for usage in usages) for name in ("value_tokens", "value_tokens_cached"))
    assert f"posttrain_value_tokens_cached_total {float(n_cached)}\n" in total
    assert f"posttrain_value_tokens_read_total {float(n_tokens - n_cached)}\n" in total
    assert all(0 < usage["value_tokens_cached"] <= usage["value_tokens"] for usage in usages[:8])
    assert all(usage["value_tokens_cached"] >= 11 for usage in usages[8:])  # one of two equal inputs, of 11 tokens
