from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.tiny_oreo import write_policy


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models of 32 hidden units are slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"))
