"""The caller's side of one grading process: started when needed, killed at its time limit, replaced when it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from posttrain.rewards.worker import READY
from posttrain.schema import Grade

START_LIMIT_S = 120.0  # importing sympy takes a second, and much longer on a machine that starts many programs
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class GradingError(RuntimeError):
    """A grading process cannot start, or a grader failed in it."""


class WorkerProcess:
    """Verifies one answer at a time. Not for two threads at once."""

    def __init__(self, *, time_limit_s: float, memory_limit_mb: int) -> None:
        self._time_limit_s = time_limit_s
        self._memory_limit_mb = memory_limit_mb
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def verify(self, grader: str, gold: str, answer: str) -> Grade:
        """The grade by GRADERS[grader].verify; TIMEOUT when it takes too long or too much memory, or dies of it.

        The clock starts when the process, which is up and idle, is given the answer. Raises GradingError.
        """
        _, channel = self._running = self._running or self._start()
        try:
            channel.send_bytes(json.dumps([grader, gold, answer]).encode())
            if not channel.poll(self._time_limit_s):
                self.stop()
                return Grade.TIMEOUT
            reply = json.loads(channel.recv_bytes())
        except (EOFError, OSError):  # it died: a stack overflow in C, or the kernel took it for its memory
            self.stop()
            return Grade.TIMEOUT
        if reply["is_last"]:
            self.stop()
        if "error" in reply:
            raise GradingError(f"grader {grader} failed on {answer[:200]!r} (gold {gold[:200]!r}): {reply['error']}")
        return Grade(reply["grade"])

    def stop(self) -> None:
        """End the process at once; the next answer starts another."""
        if self._running is not None:
            process, channel = self._running
            self._running = None
            channel.close()
            process.kill()
            process.wait()

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        """A process that is ready for an answer.

        A program of its own and not multiprocessing's spawn or fork: those would import the caller's main module in
        it, or copy threads and CUDA's state.
        """
        here, there = Pipe()
        limits = (str(self._memory_limit_mb), str(self._time_limit_s))
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "posttrain.rewards.worker", str(there.fileno()), *limits],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C is the caller's
            )
            there.close()
            try:
                if here.poll(START_LIMIT_S) and here.recv_bytes() == READY:
                    return process, here
            except (EOFError, OSError):
                pass  # its last words say why
            here.close()
            process.kill()
            code = process.wait()
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip()[-1500:] or "(it said nothing)"
        raise GradingError(
            f"the grading process did not start (exit code {code}, memory_limit_mb {self._memory_limit_mb}): {words}"
        )


def _environment() -> dict[str, str]:
    """The caller's, with this package on the path, and sets in one order, so that a grade does not depend on it."""
    paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
