"""What the tests of the page share: a request that searches, and how a user makes it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from posttrain.search.scorer import Scored
from posttrain.serve.backend import Backend
from tests.serve.chromium import CTRL, Tab

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

    async def score(self, sequences: Sequence[Sequence[int]]) -> Scored:
        await asyncio.to_thread(self.rounds.acquire)
        return await self._backend.score(sequences)


def open_page(tab: Tab, url: str, **state: Any) -> None:
    """The page with its form filled by a link."""
    tab.open(f"{url}/#{urlencode(SEARCH | state)}")
    tab.wait("document.getElementById('algorithm-help').textContent !== ''")


def run(tab: Tab) -> None:
    tab.press("Enter", modifiers=CTRL)
    tab.wait(f"{IS_IDLE} && !document.getElementById('status').textContent.startsWith('Type')")


def text_of(tab: Tab, selector: str) -> str:
    return tab.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def focused(tab: Tab, attribute: str) -> Any:
    return tab.evaluate(f"document.activeElement.{attribute}")


def tab_to(tab: Tab, target: str) -> None:
    """Press Tab until the element with this id or role has the focus."""
    for _ in range(60):
        tab.press("Tab")
        if target in (focused(tab, "id"), focused(tab, "role")):
            return
    raise AssertionError(f"{target} is not in the tab order")
