"""The examples of docs/serving.md are answered by a live server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from posttrain.serve.limits import Limits
from posttrain.serve.requests import SearchRequest
from posttrain.serve.serve_config import ServeConfig, limits_of
from tests.serve.tiny_server import Served

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
CURL = re.compile(r"^curl http://127\.0\.0\.1:8000(\S+) .*? -d '(.*?)'$", re.MULTILINE | re.DOTALL)
EXAMPLES = CURL.findall(PAGE)


@pytest.mark.parametrize(("route", "body"), EXAMPLES, ids=[f"{i}{route}" for i, (route, _) in enumerate(EXAMPLES)])
def test_curl_example_is_answered(server: Served, route: str, body: str) -> None:
    given = json.loads(body)
    if "model" in given:
        given["model"] = f"tiny-{given['model']}"
    reply = httpx.post(server.url + route, json=given, timeout=60)
    assert reply.status_code == 200, reply.text


def test_every_route_that_takes_a_body_has_an_example() -> None:
    assert {route for route, _ in EXAMPLES} == {"/v1/chat/completions", "/v1/completions", "/v1/values"}


def test_example_of_the_official_client_runs(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai", reason="needs the openai client")
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    code = block.replace("http://127.0.0.1:8000", server.url).replace('"policy"', '"tiny-policy"')
    exec(code, {})
    assert capsys.readouterr().out.split()[-1].isdecimal()


def test_tables_name_every_field_of_a_search_and_the_default_limits() -> None:
    table = PAGE[PAGE.index("## Search") :]
    assert all(f"`{name}" in table for name in SearchRequest.model_fields)
    limits = limits_of(ServeConfig(model="m"))
    assert limits == Limits(
        body_bytes=2**20,
        n=16,
        branches=64,
        value_inputs=64,
        rows=256,
        queue=256,
        deadline_s=120,
        drain_s=30,
        requests_per_minute=600,
    )
    for said in ("1 MiB", "| 16 |", "| 64 |", "| 256 |", "| 600 a minute |", "| 120 s |", "(30 s)"):
        assert said in PAGE
