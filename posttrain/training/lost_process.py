"""When a process of a distributed run is lost: which one, as far as the others can tell, and how the run goes on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from accelerate.utils import gather_object
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - public, without __all__

from posttrain.training.checkpoint import MARKER, list_checkpoints

ROLL_CALL_S = 10.0  # how long a process waits for the others to say that they are there


class LostProcessError(RuntimeError):
    """A collective operation failed: another process, its host or the network is gone."""


@contextmanager
def naming_lost_processes(run_dir: Path) -> Iterator[None]:
    """Turn a failed collective operation inside into a LostProcessError; all ranks must enter.

    A peer that dies closes its connections, and the others fail at once. One that falls silent (power, network) is
    noticed after `ddp_timeout` seconds. This sees what the backend raises, as gloo does. NCCL's watchdog ends the
    process by itself unless TORCH_NCCL_BLOCKING_WAIT=1 is set; its log then takes the place of this message.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    hosts = gather_object([socket.gethostname()])
    try:
        yield
    except RuntimeError as error:
        if not _is_of_the_network(error):
            raise
        raise LostProcessError(_message(error, hosts, run_dir)) from error


def _is_of_the_network(error: RuntimeError) -> bool:
    # gloo's errors are plain RuntimeErrors whose text names the file of gloo's source that they come from.
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _message(error: RuntimeError, hosts: Sequence[str], run_dir: Path) -> str:
    rank = dist.get_rank()
    saved = [folder.name for folder in list_checkpoints(run_dir) if (folder / MARKER).is_file()]
    return "\n".join(
        [
            f"rank {rank} of {len(hosts)} on {hosts[rank]} lost its connection: {str(error).splitlines()[0]}",
            f"  {_roll_call(rank, hosts)}",
            f"  newest checkpoint in {run_dir}: {saved[-1] if saved else 'none yet'}",
            "  to go on: bring the host back or put another in its place, then start the same command on every host "
            "with --resume_from_checkpoint latest",
        ]
    )


def _roll_call(rank: int, hosts: Sequence[str]) -> str:
    """Who does not answer: every process that meets the failure signs in at the store of the launcher."""
    main, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(main, port, is_master=False, timeout=timedelta(seconds=ROLL_CALL_S))
        store.set(_sign(rank), "here")
        absent = _absent(store, len(hosts))
    except dist.DistError:
        return f"the main host {main}:{port} does not answer: it is lost, or has ended already"
    if not absent:
        return "every process still answers: the network failed, or one was busy for longer than ddp_timeout"
    return "no answer from " + ", ".join(f"rank {other} on {hosts[other]}" for other in absent)


def _absent(store: TCPStore, n_ranks: int) -> list[int]:
    """The ranks that have not signed in when ROLL_CALL_S seconds are over."""
    absent = list(range(n_ranks))
    end = time.monotonic() + ROLL_CALL_S
    while absent and time.monotonic() < end:
        absent = [rank for rank in absent if not store.check([_sign(rank)])]
        time.sleep(0.1)
    return absent


def _sign(rank: int) -> str:
    return f"posttrain/lost/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"
