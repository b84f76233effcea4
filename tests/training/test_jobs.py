"""Workers of a command that is killed end with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = """
import sys
from pathlib import Path
from posttrain.training.jobs import run_jobs
from tests.training.test_jobs import note_pid_and_sleep
if __name__ == "__main__":
    run_jobs(note_pid_and_sleep, [Path(path) for path in sys.argv[1:]], n_processes=2)
"""


def note_pid_and_sleep(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(300)


def test_workers_end_when_their_command_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "command.py"
    program.write_text(COMMAND)
    notes = [tmp_path / "a", tmp_path / "b"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = subprocess.Popen([sys.executable, str(program), *map(str, notes)], cwd=REPOSITORY, env=environment)
    try:
        wait_for(lambda: all(note.exists() and note.read_text() for note in notes))
        pids = [int(note.read_text()) for note in notes]
        assert all(is_running(pid) for pid in pids)
    finally:
        command.send_signal(signal.SIGKILL)
        command.wait()
    wait_for(lambda: not any(is_running(pid) for pid in pids))


def wait_for(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"did not hold within {seconds} s"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """A process that ended and that nobody has waited for is a zombie: state Z."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
