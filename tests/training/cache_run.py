"""Fill a reference cache in a process of its own, for a test to kill: cache_run.py POLICY FOLDER HOLDS [KILL_AT_FILE].

With KILL_AT_FILE, the end of a path, the process sends itself SIGKILL when it opens such a file. Prints one line for
each shard that it computes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from posttrain.training.reference_cache import ReferenceCache
from posttrain.training.reference_scoring import prepare_reference_cache
from tests.training.tiny_oreo import tiny_config, trajectories

N_ROWS = 23
ROWS_PER_SHARD = 4  # six shards, the last one of three rows


def main(policy: Path, folder: Path, holds: str, kill_at_file: str | None) -> None:
    if kill_at_file is not None:
        sys.addaudithook(lambda event, args: _kill_when_opened(kill_at_file, event, args))
    torch.set_num_threads(1)
    fill(policy, folder, holds)


def fill(policy: Path, folder: Path, holds: str) -> list[int]:
    """Prepare the cache; returns the shards that had to be computed."""
    computed: list[int] = []
    write_shard = ReferenceCache.write_shard

    def recording(cache: ReferenceCache, shard: int, numbers: Tensor) -> None:
        computed.append(shard)
        write_shard(cache, shard, numbers)

    ReferenceCache.write_shard = recording
    try:
        config = tiny_config(policy, folder.parent, reference_from=holds, reference_cache=str(folder), alpha=0.0)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(policy)
        prepare_reference_cache(config, trajectories(N_ROWS), tokenizer, rows_per_shard=ROWS_PER_SHARD)
    finally:
        ReferenceCache.write_shard = write_shard
    return computed


def _kill_when_opened(ending: str, event: str, args: tuple[object, ...]) -> None:
    if event == "open" and str(args[0]).endswith(ending):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
