"""Two hosts on one machine: network namespaces with names of their own, joined by a virtual cable. No root is needed.

Linux only. Both namespaces belong to one user namespace, in which the caller may configure them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CABLE = "cable0"  # the interface of each host


class NoNamespacesError(RuntimeError):
    """This machine does not let us make network namespaces; the text is the kernel's or the tool's reason."""


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    init: subprocess.Popen[str]  # keeps the namespaces alive

    def start(self, command: Sequence[str], *, cwd: Path, env: dict[str, str], log: Path) -> subprocess.Popen[str]:
        """Run a command on this host; what it prints is appended to `log`."""
        own = {**env, "GLOO_SOCKET_IFNAME": CABLE}  # else gloo takes the interface that the host's name resolves to
        with log.open("a") as file:
            return subprocess.Popen([*self._enter(), *command], cwd=cwd, env=own, stdout=file, stderr=file, text=True)

    def run(self, *command: str) -> None:
        _checked([*self._enter(), *command])

    def cut_power(self) -> None:
        """Nothing more leaves the host, not even the end of its connections; then all its processes are killed."""
        self.run("ip", "link", "set", CABLE, "down")
        self.kill_processes()

    def kill_processes(self) -> None:
        """SIGKILL to everything on the host, also to what is started meanwhile."""
        while running := self._processes():
            for process in running:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.01)

    def restore(self) -> None:
        self.run("ip", "link", "set", CABLE, "up")

    def _processes(self) -> list[int]:
        space = _network(self.init.pid)
        pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if pid != self.init.pid and _network(pid) == space]

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.init.pid), "--user", "--net", "--uts", "--preserve-credentials"]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """host-a at 10.77.0.1 and host-b at 10.77.0.2. Raises NoNamespacesError where the kernel forbids it."""
    first = _sleeper(["unshare", "--user", "--map-root-user", "--net", "--uts"])
    inits = [first]
    try:
        own_user = ["nsenter", "--target", str(first.pid), "--user", "--preserve-credentials"]
        inits.append(_sleeper([*own_user, "unshare", "--net", "--uts"]))
        hosts = tuple(
            Host(f"host-{n}", f"10.77.0.{i}", init) for i, (n, init) in enumerate(zip("ab", inits, strict=True), 1)
        )
        ends = [CABLE, "netns", str(inits[0].pid)], [CABLE, "netns", str(inits[1].pid)]
        hosts[0].run("ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for host in hosts:
            host.run("hostname", host.name)
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "address", "add", f"{host.address}/24", "dev", CABLE)
            host.run("ip", "link", "set", CABLE, "up")
        try:
            yield hosts
        finally:
            for host in hosts:
                host.kill_processes()
    finally:
        for init in inits:
            init.kill()
            init.wait()


def _sleeper(enter: Sequence[str]) -> subprocess.Popen[str]:
    """A process that says when it is inside its namespaces, and stays."""
    try:
        process = subprocess.Popen(
            [*enter, "sh", "-c", "echo inside; exec sleep infinity"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError as error:
        raise NoNamespacesError(f"{error.filename} is not installed (Debian, Ubuntu: util-linux)") from error
    assert process.stdout is not None and process.stderr is not None
    if process.stdout.readline() != "inside\n":
        process.wait()
        raise NoNamespacesError(process.stderr.read().strip())
    return process


def _checked(command: Sequence[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise NoNamespacesError(f"{' '.join(command)}: {finished.stderr.strip()}")


def _network(pid: int) -> int | None:
    """The network namespace of a process."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:  # it has ended
        return None
