"""Many small runs side by side: each job in a process with one thread, one progress bar over all."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from threading import Thread
from typing import TypeVar

import torch
from tqdm.auto import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


class JobError(RuntimeError):
    """A job failed; the message names it."""


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], *, n_processes: int) -> list[Result]:
    """`function` of every job, in the order of the jobs. With one process they run here, one after another.

    `function` and the jobs have to be picklable: a function of a module, and plain data. Each process has one thread:
    small networks are slower on two.

    Raises JobError from the first job that fails, once those that run have ended; the others are not begun. Raises
    ValueError for n_processes below 1.
    """
    if n_processes < 1:
        raise ValueError(f"n_processes is {n_processes}, needs 1 or more")
    if n_processes == 1:
        return _run_here(function, jobs)
    spawned = multiprocessing.get_context("spawn")  # a forked process may hold locks of torch's threads
    n_workers = max(1, min(n_processes, len(jobs)))
    with ProcessPoolExecutor(n_workers, mp_context=spawned, initializer=_start_worker) as pool:
        places = {pool.submit(function, job): place for place, job in enumerate(jobs)}
        results: dict[int, Result] = {}
        for future in tqdm(as_completed(places), total=len(jobs), unit="run", disable=None):
            place = places[future]
            try:
                results[place] = future.result()
            except Exception as error:
                pool.shutdown(cancel_futures=True)
                raise JobError(f"{jobs[place]}: {error}") from error
    return [results[place] for place in range(len(jobs))]


def _run_here(function: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [function(job) for job in tqdm(jobs, unit="run", disable=None)]
    finally:
        torch.set_num_threads(n_threads)


def _start_worker() -> None:
    Thread(target=_end_with_the_command, daemon=True).start()
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"  # their bars would write over the one bar


def _end_with_the_command() -> None:
    """Left alone, a worker of a command that was killed would go on writing into a run that is then begun again."""
    command = multiprocessing.parent_process()
    if command is not None:
        command.join()
        os._exit(1)
