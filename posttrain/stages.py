"""Stages of a longer job: `posttrain` commands in processes of their own, printed, logged and timed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Argument = str | Path
N_TAIL = 25  # lines of a failed stage's log that the error shows


class StageError(ChildProcessError):
    """A stage ended with an error; the message shows the end of its log."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One command: `posttrain <verb> --config <recipes>/<recipe>.yaml <arguments>`."""

    name: str  # of its log, and of its recipe unless `recipe` names another
    verb: str
    arguments: tuple[Argument, ...]
    recipe: str | None = None


class Stages:
    """Runs stages; may be called from several threads."""

    def __init__(self, logs: Path, *, recipes: Path, is_smoke: bool) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = logs
        self.recipes = recipes
        self.is_smoke = is_smoke
        self.started = time.monotonic()

    def run(self, stage: Stage) -> None:
        """Run one stage to its end. Raises StageError when it fails."""
        log = self.logs / f"{stage.name}.log"
        words = ["posttrain", *stage.verb.split(), "--config", str(self._recipe(stage)), *map(str, stage.arguments)]
        self._say(shlex.join(words))
        start = time.monotonic()
        with log.open("w", encoding="utf-8") as output:
            code = subprocess.call(
                [sys.executable, "-m", *words], stdout=output, stderr=subprocess.STDOUT, env=_environment()
            )
        if code != 0:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-N_TAIL:])
            raise StageError(f"stage {stage.name} ended with exit code {code}; the end of {log}:\n{tail}")
        self._say(f"{stage.name}: done in {time.monotonic() - start:.0f} s{_results(log)}")

    def _recipe(self, stage: Stage) -> Path:
        folder = self.recipes / "smoke" if self.is_smoke else self.recipes
        return folder / f"{stage.recipe or stage.name}.yaml"

    def _say(self, text: str) -> None:
        # The line break goes in the same write: another thread could print between the two that print makes of it.
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}\n", end="", flush=True)


def _environment() -> Mapping[str, str]:
    """Small networks are many times slower on two threads than on one; the stages share the cores instead."""
    return {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}


def _results(log: Path) -> str:
    """The lines of a log that state an accuracy, for the console."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if " answers, " in line]
    return "".join(f"\n          {line}" for line in lines)
