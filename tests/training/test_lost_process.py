"""What a process says when another one of its run dies, or falls silent and comes back; real processes over gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState

from posttrain.training.lost_process import LostProcessError, naming_lost_processes

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

REPOSITORY = Path(__file__).resolve().parents[2]
SILENCE_S = 4


def test_process_that_dies_is_named_at_once_with_the_newest_checkpoint(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-9", "checkpoint-10"):  # the save of 11 was cut
        (tmp_path / name / "COMPLETE").touch()
    lines = _run(tmp_path, "die").splitlines()
    host = socket.gethostname()
    assert lines[0].startswith(f"rank 0 of 2 on {host} lost its connection: ")
    assert lines[1] == f"  no answer from rank 1 on {host}"
    assert lines[2] == f"  newest checkpoint in {tmp_path}: checkpoint-10"
    assert lines[3].endswith("start the same command on every host with --resume_from_checkpoint latest")


def test_process_that_was_only_busy_answers_the_roll(tmp_path: Path) -> None:
    lines = _run(tmp_path, "sleep").splitlines()
    assert lines[1] == "  every process still answers: the network failed, or one was busy for longer than ddp_timeout"
    assert lines[2] == f"  newest checkpoint in {tmp_path}: none yet"


def test_errors_of_other_kinds_pass_unchanged(tmp_path: Path) -> None:
    assert _run(tmp_path, "raise") == "RuntimeError: my own"


def _run(run_dir: Path, what_rank_1_does: str) -> str:
    """What rank 0 reports of its error."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        ranks = [context.Process(target=_rank, args=(rank, port, run_dir, what_rank_1_does)) for rank in (0, 1)]
        for process in ranks:
            process.start()
    for process in ranks:
        process.join(120)
    return (run_dir / "said.txt").read_text()


def _rank(rank: int, port: int, run_dir: Path, what_rank_1_does: str) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", timeout=timedelta(seconds=SILENCE_S))
    PartialState(cpu=True)
    try:
        with naming_lost_processes(run_dir):
            if what_rank_1_does == "raise":
                raise RuntimeError("my own")
            if rank == 1 and what_rank_1_does == "die":
                os._exit(1)
            if rank == 1:
                time.sleep(SILENCE_S + 1)
            dist.all_reduce(torch.ones(1))
    except LostProcessError as error:
        text = str(error)
    except RuntimeError as error:
        text = f"RuntimeError: {error}"
    if rank == 0:
        (run_dir / "said.txt").write_text(text)
        time.sleep(SILENCE_S)  # the store of rank 0 stays for the other one
