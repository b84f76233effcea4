from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs posttrain[serve]")

from posttrain.serve.serve_config import ServeConfig
from tests.serve.tiny_server import Served, served, write_models


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
