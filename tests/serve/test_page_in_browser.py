"""The page in a real Chromium, on the real server with a tiny model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest

pytest.importorskip("websockets", reason="needs websockets, which drives the browser")

from posttrain.serve.backend import Backend
from posttrain.serve.run import load_backend
from posttrain.serve.serve_config import ServeConfig
from tests.serve.chromium import CHROMIUM, CTRL, Tab, open_tab, wait_until
from tests.serve.tiny_server import Served, served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)"),
]

KEY = "0123456789abcdef0123456789abcdef"
# With this seed the tiny model grows a tree of several steps.
SEARCH = {
    "prompt": "12+30=",
    "algorithm": "beam",
    "width": 3,
    "expansions": 3,
    "max_steps": 6,
    "step_tokens": 64,
    "max_tokens": 200,
    "temperature": 1,
    "seed": 5,
}
IS_IDLE = "!document.getElementById('run').disabled"


class SteppedBackend:
    """A real backend that reads values only when it is let, so that a test can look at the page between two rounds."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.rounds = threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        await asyncio.to_thread(self.rounds.acquire)
        return await self._backend.score(sequences)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Tab:
    browser.send("Page.navigate", url="about:blank")
    browser.events.clear()
    return browser


def open_page(tab: Tab, url: str, **state: Any) -> None:
    """The page with its form filled by a link."""
    tab.open(f"{url}/#{urlencode(SEARCH | state)}")
    tab.wait("document.getElementById('algorithm-help').textContent !== ''")


def run(tab: Tab) -> None:
    tab.press("Enter", modifiers=CTRL)
    tab.wait(f"{IS_IDLE} && !document.getElementById('status').textContent.startsWith('Type')")


def text_of(tab: Tab, selector: str) -> str:
    return tab.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


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


def focused(tab: Tab, attribute: str) -> Any:
    return tab.evaluate(f"document.activeElement.{attribute}")


def tab_to(tab: Tab, target: str) -> None:
    """Press Tab until the element with this id or role has the focus."""
    for _ in range(60):
        tab.press("Tab")
        if target in (focused(tab, "id"), focused(tab, "role")):
            return
    raise AssertionError(f"{target} is not in the tab order")


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


def test_every_control_has_a_name_and_the_tree_is_one(tab: Tab, server: Served):
    open_page(tab, server.url)
    run(tab)
    nodes = [node for node in tab.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    by_role: dict[str, list[str]] = {}
    for node in nodes:
        by_role.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("textbox", "combobox", "spinbutton", "button", "checkbox", "slider", "treeitem", "tree"):
        assert by_role[role], role
        assert all(by_role[role]), f"a {role} without a name: {by_role[role]}"
    assert by_role["tree"] == ["Search tree, from left to right"]
    assert any(name.startswith("Step 1, value ") and "on the chosen path" in name for name in by_role["treeitem"])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_a_contrast_of_4_5_in_both_themes(tab: Tab, server: Served, theme: str):
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    open_page(tab, server.url)
    run(tab)
    tab.evaluate("document.activeElement.blur()")
    low = tab.evaluate(CONTRASTS)
    assert low["n"] > 60
    assert low["worst"] >= 4.5, low
    tab.send("Emulation.setEmulatedMedia", features=[])


# The lowest WCAG 2 contrast of an element that holds text itself against what is painted under it. A canvas turns
# every colour that CSS can name into sRGB.
CONTRASTS = """(() => {
  const pen = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
    .getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b]
    .map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (element) => {
    if (element.closest('.node')) return rgba(getComputedStyle(element.closest('.node').querySelector('.box')).fill);
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
  };
  let worst = { worst: 21, n: 0 };
  for (const element of document.body.querySelectorAll('*')) {
    const isText = [...element.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!isText || !element.checkVisibility() || element.matches(':disabled, option, template')) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(under(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    worst.n += 1;
    if (contrast < worst.worst) worst = { ...worst, worst: contrast, text: element.textContent };
  }
  return worst;
})()"""


def test_largest_tree_is_drawn_without_an_overlap(tab: Tab, server: Served):
    """16 candidates a step for 20 steps, of which 4 go on, and the worst case of an order that changes."""
    open_page(tab, server.url)
    overlaps = tab.evaluate(
        """import('/page/tree.js').then(({ SearchTree, layout, NODE }) => {
          const tree = new SearchTree('');
          let kept = [0], index = 1;
          for (let depth = 1; depth <= 20; depth++) {
            const nodes = kept.flatMap((parent) => [0, 1, 2, 3].map(() => (
              { index, parent, depth, text: '', score: Math.sin(7 * index++), state: 'open' }
            )));
            tree.apply(nodes);
            kept = nodes.toSorted((a, b) => b.score - a.score).slice(0, 4).map((node) => node.index);
          }
          const { places, width, height } = layout(tree);
          const all = [...places.values()];
          const touch = (a, b) => Math.abs(a.x - b.x) < NODE.width && Math.abs(a.y - b.y) < NODE.height;
          const isOut = ({ x, y }) => x < 0 || y < 0 || x + NODE.width > width || y + NODE.height > height;
          const crossed = all.filter((a) => all.some((b) => a.column === b.column && a.column > 0 && a.y < b.y
            && places.get(a.node.parent).y > places.get(b.node.parent).y));
          const n = all.filter((a, i) => all.some((b, j) => i < j && touch(a, b))).length;
          return { n, nOut: all.filter(isOut).length, nCrossed: crossed.length, nNodes: all.length };
        })"""
    )
    # 4 nodes below the prompt, then 16 at each of 19 steps, and the prompt
    assert overlaps == {"n": 0, "nOut": 0, "nCrossed": 0, "nNodes": 1 + 4 + 19 * 16}


def test_nodes_stand_at_the_least_squares_places(tab: Tab, server: Served):
    """Wished 0, 0, 6 with a gap of 4: the first two share their error, −2 and 2; the third has room at 6."""
    open_page(tab, server.url)
    found = tab.evaluate("import('/page/tree.js').then(({ spread }) => spread([0, 0, 6], [0, 4, 8]))")
    assert found == [-2, 2, 6]


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


def test_link_brings_the_form_back(tab: Tab, server: Served):
    open_page(tab, server.url, prompt="a & b #1", algorithm="best_of_n", seed=7)
    run(tab)
    link = tab.evaluate("location.href")
    tab.open(link)
    tab.wait("document.getElementById('algorithm-help').textContent !== ''")
    fields = tab.evaluate("['prompt', 'algorithm', 'seed'].map((name) => document.getElementById(name).value)")
    assert fields == ["a & b #1", "best_of_n", "7"]
