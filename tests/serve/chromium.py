"""A real Chromium without a window, driven over its DevTools protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-address=127.0.0.1",
    "--remote-debugging-port=0",
)
# A key's name, the code that it is typed with, and the text that it types.
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "Home": (36, ""),
    "End": (35, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
    " ": (32, " "),
}
CTRL = 2


class Tab:
    """One page and everything that it did: console, exceptions, requests."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._n_sent = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result; what the page reports meanwhile is kept in `events`."""
        self._n_sent += 1
        self._socket.send(json.dumps({"id": self._n_sent, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._n_sent:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression, of a promise the value that it is fulfilled with."""
        reply = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in reply, f"{expression}: {reply['exceptionDetails']}"
        return reply["result"].get("value")

    def wait(self, condition: str, *, seconds: float = 60) -> None:
        """Until a JavaScript condition holds; an error says what the page shows instead."""
        try:
            wait_until(lambda: bool(self.evaluate(condition)), condition, seconds=seconds)
        except AssertionError as error:
            error.add_note(f"The page says:\n{self.evaluate('document.body.innerText')}")
            raise

    def type(self, text: str) -> None:
        """Into whatever has the focus, as one input."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, modifiers: int = 0) -> None:
        code, text = KEYS[key]
        key_event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        typed = {"text": text} if text and not modifiers else {}
        self.send("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **key_event, **typed)
        self.send("Input.dispatchKeyEvent", type="keyUp", **key_event)

    def problems(self) -> list[str]:
        """Exceptions, and errors and warnings of the console and of the security policy."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            match event["method"]:
                case "Runtime.exceptionThrown":
                    found.append(str(params["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    found.append(str(params["args"]))
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def requested_urls(self) -> list[str]:
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def open_tab(profile: Path) -> Iterator[Tab]:
    """A browser of its own with an empty profile, closed at the end."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    port_file = profile / "DevToolsActivePort"
    try:
        wait_until(lambda: port_file.exists() and port_file.read_text().count("\n") >= 1, "Chromium's debugging port")
        port, path = port_file.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as browser:
            browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
            targets = json.loads(browser.recv())["result"]["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        with connect(f"ws://127.0.0.1:{port}/devtools/page/{page}", max_size=None, proxy=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_until(is_true: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, f"waited {seconds} s for: {what}"
        time.sleep(0.02)
