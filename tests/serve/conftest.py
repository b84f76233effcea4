from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="needs posttrain[serve]")

from posttrain.serve.serve_config import ServeConfig
from tests.serve.tiny_server import Served, served, write_models

if TYPE_CHECKING:
    from tests.serve.chromium import Tab


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a policy and its value model."""
    return write_models(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def config(tiny_models: tuple[Path, Path]) -> ServeConfig:
    policy, value = tiny_models
    return ServeConfig(model=str(policy), value_model=str(value), device="cpu", requests_per_minute=0)


@pytest.fixture(scope="session")
def server(config: ServeConfig) -> Iterator[Served]:
    """One server that asks for no key, for tests that leave it as it was."""
    with served(config) as running:
        yield running


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """One Chromium for all tests of the page."""
    pytest.importorskip("websockets", reason="needs websockets, which drives the browser")
    from tests.serve.chromium import CHROMIUM, open_tab

    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian's package chromium)")
    with open_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Tab:
    """An empty tab that has seen nothing."""
    browser.send("Page.navigate", url="about:blank")
    browser.events.clear()
    return browser
