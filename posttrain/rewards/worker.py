"""The process in which a GradingPool verifies answers: `python -m posttrain.rewards.worker FD MEMORY_MB SECONDS`.

It answers one message at a time over the inherited file descriptor: [grader, gold, answer] as JSON in, {"grade": ...}
or {"error": ...} out, the latter two with "is_last" where the process is about to end. It loads neither torch nor the
caller's main module, and keeps no state but sympy's caches.
"""

from __future__ import annotations

import gc
import json
import logging
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from posttrain.rewards.graders import GRADERS
from posttrain.rewards.symbolic import warm_up
from posttrain.schema import Grade

READY = b"ready"
STATUS = Path("/proc/self/status")  # of Linux; getrusage would count the caller's memory before exec


def main(fd: int, memory_limit_mb: int, time_limit_s: float) -> None:
    """Serve until the other end closes."""
    # Twice the limit: what takes more than the limit is graded TIMEOUT below, and a single request for far more
    # memory than that is refused before it is served.
    limit_bytes = 2 * memory_limit_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.WARNING)  # math-verify warns that its own time-outs are off
    channel = Connection(fd)
    warm_up()
    gc.freeze()  # sympy's hundred thousand objects stay: no collection walks them while an answer waits
    channel.send_bytes(READY)
    while True:
        try:
            message = channel.recv_bytes()
        except EOFError:
            return
        # Were the caller killed while an answer is verified, nobody else would end this process.
        signal.setitimer(signal.ITIMER_REAL, 2 * time_limit_s)
        reply = answer_to(message, memory_limit_mb)
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.send_bytes(json.dumps(reply).encode())
        if reply["is_last"]:
            return


def answer_to(message: bytes, memory_limit_mb: int) -> dict[str, object]:
    """The reply to one message. The process ends after it when its memory is not what it was."""
    grader, gold, answer = json.loads(message)
    try:
        verify = GRADERS[grader].verify
        assert verify is not None, "it has no verifier: the caller decides"
        reply: dict[str, object] = {"grade": verify(gold, answer)}
    except (MemoryError, RecursionError):
        return {"grade": Grade.TIMEOUT, "is_last": True}
    except Exception as error:  # a fault of the grader, which the caller raises
        reply = {"error": f"{type(error).__name__}: {error}"[:1000]}
    # sympy and math-verify catch MemoryError, and then say that the answer is wrong.
    if resident_mb("VmHWM") > memory_limit_mb:
        return {"grade": Grade.TIMEOUT, "is_last": True}
    # Full caches of earlier answers must not be charged to a later one.
    return {**reply, "is_last": resident_mb("VmRSS") > memory_limit_mb / 2}


def resident_mb(field: str) -> float:
    """VmRSS, the memory that this process holds now, or VmHWM, the most it ever held; in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
