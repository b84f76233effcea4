"""Games in worker processes, each with a time limit and a hard kill.

The engine is C++ and Python that was never meant to be stopped: a hang or a crash ends its process, becomes a
GameFailure that says why, and the next game gets a fresh process.
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from posttrain.alfworld.agents import AgentName
from posttrain.alfworld.environment import Observation, require_engine
from posttrain.alfworld.games import Game
from posttrain.alfworld.play import GameRecord

WORKER = (sys.executable, "-m", "posttrain.alfworld.worker")
GAMES_PER_PROCESS = 16  # a game leaves its planner library in memory; a new process costs about a second
MAX_ERROR_CHARACTERS = 300
SOURCE = Path(__file__).resolve().parents[2]


class GameFailure(RuntimeError):
    """A game that cannot go on: its engine hung, died or raised. The message is what the record keeps."""


class GameProcess:
    """One worker process, started when it is first needed and again after a failure or GAMES_PER_PROCESS games."""

    def __init__(self, *, seconds_per_game: float, command: Sequence[str] = WORKER) -> None:
        if seconds_per_game <= 0:
            raise ValueError(f"seconds_per_game is {seconds_per_game}, needs a number above 0")
        self.seconds_per_game = seconds_per_game
        self._command = tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None  # what the process has said on standard error
        self._unread = b""
        self._n_games = 0
        self._seconds_left = 0.0

    def reset(self, game: Game) -> Observation:
        """Start a game. Raises GameFailure, as `step` does; the game is over then."""
        self._start_game()
        return _observation(self._ask({"op": "reset", "game": asdict(game)}))

    def step(self, command: str) -> Observation:
        """Give a command in the game that was started last."""
        return _observation(self._ask({"op": "step", "command": command}))

    def play(self, game: Game, agent: AgentName, *, seed: int, max_steps: int) -> GameRecord:
        """A whole game of one of the scripted agents; a failure is in its record and raises nothing."""
        started = time.perf_counter()
        try:
            self._start_game()
            answer = self._ask(
                {"op": "play", "game": asdict(game), "agent": agent.value, "seed": seed, "max_steps": max_steps}
            )
            return GameRecord.from_json(answer)
        except GameFailure as failure:
            return GameRecord(
                game_id=game.game_id,
                task_type=game.task_type,
                agent=agent,
                seed=seed,
                max_steps=max_steps,
                is_won=False,
                n_steps=0,
                n_inadmissible=0,
                seconds=round(time.perf_counter() - started, 3),
                failure=str(failure),
                commands=(),
            )

    def kill(self) -> None:
        """End the process from another thread; a game that runs in it fails."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """Kill the process and free what belongs to it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None
        self._unread = b""

    def __enter__(self) -> GameProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_game(self) -> None:
        if self._n_games == GAMES_PER_PROCESS:
            self.close()
        if self._process is None:
            self._process, self._n_games = self._started(), 0
        self._n_games += 1
        self._seconds_left = self.seconds_per_game

    def _started(self) -> subprocess.Popen[bytes]:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            # alfworld makes this folder when it is imported, by default in the user's home; games come by the pipe.
            "ALFWORLD_DATA": tempfile.gettempdir(),
        }
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env=environment,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer, in what is left of the game's seconds."""
        if self._process is None:
            raise GameFailure("the game is over: its process ended before")
        started = time.monotonic()
        answer = json.loads(self._exchange(json.dumps({**request, "seconds": self._seconds_left}).encode() + b"\n"))
        self._seconds_left -= time.monotonic() - started
        if "error" in answer:
            raise GameFailure(answer["error"])
        return answer

    def _exchange(self, line: bytes) -> bytes:
        """Write a line and read the next one, both before the deadline: a worker that does not read is a hang too."""
        process, deadline = self._process, time.monotonic() + self._seconds_left
        assert process is not None and process.stdin is not None and process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._unread:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    self.close()
                    raise GameFailure(f"killed: the engine needed more than {self.seconds_per_game:g} s")
                if any(key.fileobj is process.stdout for key, _ in ready):
                    block = os.read(process.stdout.fileno(), 1 << 16)
                    if not block:
                        raise self._death()
                    self._unread += block
                elif line:
                    line = line[self._write(process.stdin.fileno(), line) :]
                else:
                    selector.unregister(process.stdin)
        answer, _, self._unread = self._unread.partition(b"\n")
        return answer

    def _write(self, descriptor: int, line: bytes) -> int:
        try:
            return os.write(descriptor, line)
        except BrokenPipeError:
            raise self._death() from None

    def _death(self) -> GameFailure:
        """What is known of a process that ended by itself."""
        assert self._process is not None and self._errors is not None
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        self.close()
        last_words = f": {lines[-1][:MAX_ERROR_CHARACTERS]}" if lines else ""
        return GameFailure(f"the engine's process ended, {how}{last_words}")


class RemoteEnvironment:
    """A game in a process of its own, as an Environment; `reset` and `step` raise GameFailure."""

    def __init__(self, process: GameProcess, game: Game) -> None:
        self._process = process
        self._game = game

    def reset(self) -> Observation:
        return self._process.reset(self._game)

    def step(self, command: str) -> Observation:
        return self._process.step(command)


def play_games(
    games: Sequence[Game], agent: AgentName, *, seed: int, max_steps: int, n_processes: int, seconds_per_game: float
) -> Iterator[GameRecord]:
    """Play every game in `n_processes` worker processes; records come as games end.

    Raises ImportError where the engine is not installed: that is no failure of a game.
    """
    require_engine()
    processes: queue.SimpleQueue[GameProcess] = queue.SimpleQueue()
    all_processes = [GameProcess(seconds_per_game=seconds_per_game) for _ in range(n_processes)]
    for process in all_processes:
        processes.put(process)

    def play_one(game: Game) -> GameRecord:
        process = processes.get()
        try:
            return process.play(game, agent, seed=seed, max_steps=max_steps)
        finally:
            processes.put(process)

    threads = ThreadPoolExecutor(n_processes)
    try:
        running = [threads.submit(play_one, game) for game in games]
        for finished in as_completed(running):
            yield finished.result()
    finally:  # also when the caller stops early: waiting games are dropped, running ones killed
        threads.shutdown(wait=False, cancel_futures=True)
        for process in all_processes:
            process.kill()
        threads.shutdown(wait=True)
        for process in all_processes:
            process.close()


def _observation(answer: dict[str, Any]) -> Observation:
    return Observation(text=answer["text"], admissible=tuple(answer["admissible"]), is_won=answer["is_won"])
