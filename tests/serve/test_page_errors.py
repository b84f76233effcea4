"""What the page says when something is wrong: what it is, and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("websockets", reason="needs websockets, which drives the browser")

from posttrain.serve.serve_config import ServeConfig
from tests.serve.chromium import Tab
from tests.serve.page_driver import focused, open_page, run, text_of
from tests.serve.tiny_server import Served, served

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef"


def test_wrong_key_is_told_and_a_right_one_stays_out_of_link_and_command(tab: Tab, config: ServeConfig):
    with served(config, keys=[KEY]) as server:
        with_key = server.url.replace("://", f"://any:{KEY}@")
        tab.open(f"{with_key}/")  # the browser asks for the key of the page itself; here the address answers
        open_page(tab, server.url)
        tab.evaluate("document.getElementById('key').focus()")
        tab.type("wrong-wrong-wrong-wrong")
        run(tab)
        assert text_of(tab, "#error-text") == "The server does not know this key. Check it and run again."
        assert focused(tab, "id") == "key"
        tab.evaluate("document.getElementById('key').select()")
        tab.type(KEY)
        run(tab)
        assert tab.evaluate("document.getElementById('error').hidden")
        assert text_of(tab, "#chosen .text") != ""
        assert KEY not in tab.evaluate("location.href + document.body.textContent + JSON.stringify(localStorage)")
        assert tab.evaluate("sessionStorage.getItem('key')") == KEY
        assert '"Authorization: Bearer $POSTTRAIN_API_KEY"' in text_of(tab, "#curl")


def refused(tab: Tab, server: Served, **state: Any) -> tuple[str, str]:
    """What the page says of a request that the server refuses, and the field that it points to."""
    open_page(tab, server.url, **state)
    run(tab)
    return text_of(tab, "#error-text"), focused(tab, "id")


def test_refusals_say_what_to_do_and_point_to_the_field(tab: Tab, config: ServeConfig):
    with served(replace(config, max_body_bytes=1000)) as server:
        words, field = refused(tab, server, width=9, expansions=9)
        assert words.startswith("The server cannot do what was asked. It says: search.") and "64 or fewer" in words
        assert field == "width"
        words, field = refused(tab, server, prompt="1" * 1000)
        assert words.startswith("The request is larger than the server allows. Shorten the prompt.")
        assert field == "prompt"


def test_busy_server_is_waited_for(tab: Tab, config: ServeConfig):
    with served(replace(config, requests_per_minute=1)) as server:
        open_page(tab, server.url)  # which asks for the models: the minute's one request
        tab.wait("document.getElementById('models').textContent !== ''")
        run(tab)
        assert text_of(tab, "#error-text").startswith("The server is busy.")
        assert text_of(tab, "#retry").startswith("Run again in ")


def test_lost_server_is_told(tab: Tab, config: ServeConfig):
    with served(config) as server:
        open_page(tab, server.url)
        tab.wait("document.getElementById('models').textContent !== ''")
    run(tab)
    assert text_of(tab, "#error-text").startswith(f"No answer from {server.url}.")
