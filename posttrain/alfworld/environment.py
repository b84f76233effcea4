"""One game as an environment: text in, text out; on the real engine of the alfworld package.

The engine is TextWorld's PDDL environment under alfworld's wrapper that gives objects their names, which is what
`AlfredTWEnv` builds as well; only its batching, its files and its step limit are left out.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

from posttrain.alfworld.games import Game, engine_data

ENGINE_MODULES = ("alfworld", "textworld", "fast_downward")
NOTHING_HAPPENS = "Nothing happens."  # the engine's whole answer to a command that is not admissible


@dataclass(frozen=True, slots=True)
class Observation:
    """What the engine shows after a command, or at the start."""

    text: str
    admissible: tuple[str, ...]  # the commands that would do something, sorted
    is_won: bool  # the goal holds in the engine's state: the one source of success


class Environment(Protocol):
    """A game that is played from its start; `reset` starts it anew."""

    def reset(self) -> Observation: ...

    def step(self, command: str) -> Observation: ...


def require_engine() -> None:
    """Raises ImportError with the way to install it where the engine is not there."""
    missing = [name for name in ENGINE_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ALFWorld's engine is not installed (no {', '.join(missing)}): pip install 'posttrain[alfworld]'; two of "
            "its packages are built from source, which needs gcc and about 3 minutes"
        )


class EngineEnvironment:
    """A game on the TextWorld engine: its own copy of the planner library, and a state made anew by every reset.

    Loading costs about 0.7 s, most of it Fast Downward's translation of the PDDL problem in Python, a step 0.04 s.
    The library and its state stay in memory until the process ends, since unloading it crashes the interpreter's
    exit: play many games in processes that are replaced (processes.py). Raises ImportError without alfworld.
    """

    def __init__(self, game: Game) -> None:
        require_engine()
        import textworld  # pyright: ignore[reportMissingImports] - an extra
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler  # pyright: ignore[reportMissingImports] - an extra
        from textworld.envs.pddl import PddlEnv  # pyright: ignore[reportMissingImports] - an extra

        _remember_parses()
        _remember_translations()
        infos = textworld.EnvInfos(won=True, admissible_commands=True, facts=True)
        self._engine = PddlEnv(infos)
        self._environment = AlfredDemangler(self._engine)  # names in sorted order, as for evaluation
        self._environment.load(engine_data(game))
        self.state: Any = None  # the engine's GameState after the last command, for agents that read its facts

    def reset(self) -> Observation:
        self.state = self._environment.reset()
        return self._observation()

    def step(self, command: str) -> Observation:
        self.state, _, _ = self._environment.step(command)
        return self._observation()

    def _observation(self) -> Observation:
        return Observation(
            text=self.state.feedback,
            admissible=tuple(self.state["admissible_commands"]),
            is_won=bool(self.state["won"]),
        )


class _RememberingParser:
    """A parser that parses each text once.

    The engine parses the same few hundred templates and conditions anew for every admissible command, two thirds of
    the time of a step. What is remembered is the syntax tree, which the engine walks into new objects every time.
    """

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._trees: dict[tuple[object, ...], Any] = {}

    def parse(self, text: str, **options: object) -> Any:
        key = (text, *sorted(options.items()))
        if key not in self._trees:
            self._trees[key] = self._parser.parse(text, **options)
        return self._trees[key]


def _remember_parses() -> None:
    """Put a memory before the two parsers that a step of the engine uses."""
    import textworld.logic  # pyright: ignore[reportMissingImports] - an extra
    from textworld.envs.pddl import textgen  # pyright: ignore[reportMissingImports] - an extra

    for module in (textworld.logic, textgen):
        if not isinstance(module._PARSER, _RememberingParser):
            vars(module)["_PARSER"] = _RememberingParser(module._PARSER)


def _remember_translations() -> None:
    """Let loading and resetting share the translation of the problem, a pure function of its text.

    Two are kept: the engine translates every problem once for play and once for its planner.
    """
    import fast_downward  # pyright: ignore[reportMissingImports] - an extra

    if not hasattr(fast_downward.pddl2sas, "cache_info"):
        fast_downward.pddl2sas = functools.lru_cache(maxsize=2)(fast_downward.pddl2sas)
