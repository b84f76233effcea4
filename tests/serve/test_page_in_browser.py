"""The page in a real Chromium, on the real server with a tiny model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

pytest.importorskip("websockets", reason="needs websockets, which drives the browser")

from posttrain.serve.run import load_backend
from posttrain.serve.serve_config import ServeConfig
from tests.serve.chromium import CTRL, Tab, wait_until
from tests.serve.page_driver import IS_IDLE, SteppedBackend, focused, open_page, run, tab_to, text_of
from tests.serve.tiny_server import Served, served

pytestmark = pytest.mark.slow


def api_answer(server: Served, **changes: Any) -> dict[str, Any]:
    """What the API answers to the request of SEARCH, not streamed."""
    search = {
        "algorithm": "beam",
        "beam_width": 3,
        "expansions": 3,
        "max_steps": 6,
        "step": {"stop": ["\n"], "max_tokens": 64},
        "return_tree": True,
    }
    body = {
        "model": server.backend.policy_name,
        "messages": [{"role": "user", "content": "12+30="}],
        "max_tokens": 200,
        "temperature": 1,
        "seed": 5,
        "search": search,
    }
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body | changes, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_each_round_is_drawn_before_the_next_one_is_over(tab: Tab, config: ServeConfig):
    backend = SteppedBackend(load_backend(config))
    with served(config, backend=backend) as server:
        try:
            open_page(tab, server.url, greedy="false")
            tab.press("Enter", modifiers=CTRL)
            for step in (1, 2, 3):
                backend.rounds.release()
                tab.wait(f"document.getElementById('status').textContent.startsWith('Step {step}:')")
                depths = tab.evaluate("[...document.querySelectorAll('[role=treeitem]')].map((n) => n.ariaLevel)")
                assert max(map(int, depths)) == step + 1  # the prompt is level 1
                assert tab.evaluate("document.getElementById('run').disabled")
        finally:
            backend.rounds.release(100)
        tab.wait(f"{IS_IDLE} && document.querySelector('.node.winner') !== null")


def test_winner_and_its_value_are_the_apis(tab: Tab, server: Served):
    expected = api_answer(server)
    nodes = expected["search"]["tree"]["nodes"]
    assert max(node["depth"] for node in nodes) >= 3
    open_page(tab, server.url)
    run(tab)
    assert text_of(tab, "#chosen .text") == expected["choices"][0]["message"]["content"]
    assert tab.evaluate("document.querySelectorAll('[role=treeitem]').length") == len(nodes)
    winner = tab.evaluate("Number([...document.querySelectorAll('.node.winner')].at(-1).dataset.index)")
    assert winner == expected["search"]["winner"]
    assert text_of(tab, "#details-numbers").endswith(f"Same samples{nodes[winner]['n_merged']}")
    assert f"{expected['search']['value']:.4f}".replace("-", "−") in text_of(tab, "#details-numbers")
    # V before EOS, where the search read it, is V at the last token of the text.
    values = tab.evaluate("document.querySelector('#chosen .summary').textContent")
    shown = float(values.split()[4].rstrip(",").replace("−", "-"))
    assert shown == pytest.approx(expected["search"]["value"], abs=0.006)  # two digits or more are shown


def test_greedy_beside_it_is_the_greedy_answer(tab: Tab, server: Served):
    open_page(tab, server.url)
    run(tab)
    greedy = api_answer(server, temperature=0, search={"algorithm": "none"})
    assert text_of(tab, "#greedy-answer .text") == greedy["choices"][0]["message"]["content"]


def test_copied_curl_command_repeats_the_request(tab: Tab, server: Served, tmp_path: Path):
    open_page(tab, server.url, prompt='it\'s $HOME "12" \\ `+` é\n30 =', greedy="false")
    run(tab)
    shown = text_of(tab, "#chosen .text")
    script = tmp_path / "again.sh"
    script.write_text(text_of(tab, "#curl"))
    command = ["bash", "-c", f"export POSTTRAIN_API_KEY=none; source {script}"]
    streamed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    pieces = [choice["delta"].get("content", "") for event in events for choice in event["choices"]]
    assert shown != ""
    assert "".join(pieces) == shown
    assert "\"it'\\''s $HOME" in script.read_text()


def test_everything_can_be_done_from_the_keyboard(tab: Tab, server: Served):
    open_page(tab, server.url, prompt="", greedy="false")
    tab_to(tab, "prompt")
    tab.type("12+30=")
    run(tab)
    assert "chosen" in text_of(tab, "#status")
    tab_to(tab, "treeitem")
    winner, parent = tab.evaluate(
        "[...document.querySelectorAll('.node.winner')].map((n) => Number(n.dataset.index)).slice(-2).reverse()"
    )
    assert int(focused(tab, "dataset.index")) == winner
    visited = []
    for key in ("ArrowLeft", "Home", "ArrowRight", "ArrowDown", "ArrowUp", "End", "Home"):
        tab.press(key)
        visited.append(int(focused(tab, "dataset.index")))
        assert focused(tab, "ariaSelected") == "true"
        assert tab.evaluate("document.activeElement.matches(':focus-visible')")
    first, second = visited[2:4]
    assert first != second
    assert visited == [parent, 0, first, second, first, winner, 0]
    n_shown = tab.evaluate("document.querySelectorAll('[role=treeitem]').length")
    tab.press("Enter")
    assert focused(tab, "ariaExpanded") == "false"
    assert tab.evaluate("document.querySelectorAll('[role=treeitem]').length") == 1
    tab.press("Enter")
    assert tab.evaluate("document.querySelectorAll('[role=treeitem]').length") == n_shown


def test_escape_stops_the_run_and_the_server_drops_the_search(tab: Tab, config: ServeConfig):
    backend = SteppedBackend(load_backend(config))
    with served(config, backend=backend) as server:
        open_page(tab, server.url)
        tab.press("Enter", modifiers=CTRL)
        backend.rounds.release()
        tab.wait("document.getElementById('status').textContent.startsWith('Step 1:')")
        tab.press("Escape")
        tab.wait(IS_IDLE)
        assert text_of(tab, "#status") == "Stopped. What came so far is shown."
        wait_until(lambda: server.service.admission.n_admitted == 0, "the server to drop the search")
        backend.rounds.release(100)


def test_text_is_never_markup(tab: Tab, server: Served):
    attack = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    open_page(tab, server.url, prompt=attack, api="text", max_tokens=100)
    run(tab)
    assert tab.evaluate("document.title") == "posttrain"
    assert text_of(tab, "#details-text") is not None
    tab.evaluate("document.querySelector('[role=treeitem]').focus()")
    assert text_of(tab, "#details-text") == attack
    assert tab.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert tab.problems() == []


def test_nothing_is_asked_of_another_host_and_nothing_fails(tab: Tab, server: Served):
    open_page(tab, server.url)
    run(tab)
    hosts = {urlsplit(url).netloc for url in tab.requested_urls() if url != "about:blank"}
    assert hosts == {urlsplit(server.url).netloc}
    assert tab.problems() == []


def test_link_brings_the_form_back(tab: Tab, server: Served):
    open_page(tab, server.url, prompt="a & b #1", algorithm="best_of_n", seed=7)
    run(tab)
    link = tab.evaluate("location.href")
    tab.open(link)
    tab.wait("document.getElementById('algorithm-help').textContent !== ''")
    fields = tab.evaluate("['prompt', 'algorithm', 'seed'].map((name) => document.getElementById(name).value)")
    assert fields == ["a & b #1", "best_of_n", "7"]


def test_a_model_without_a_chat_template_is_sent_plain_text_unless_a_link_says_otherwise(
    tab: Tab, config: ServeConfig
):
    backend = load_backend(config)
    backend.tokenizer.chat_template = None
    chosen = "document.getElementById('api').value"
    with served(config, backend=backend) as server:
        for fragment, expected in (("", "text"), ("#api=chat", "chat")):
            tab.open(f"{server.url}/{fragment}")
            tab.wait("document.getElementById('models').textContent !== ''")
            assert tab.evaluate(chosen) == expected
