"""The command line: `posttrain <verb> --config x.yaml --key value`.

A verb is a config class and a function that takes one; both are imported when the verb runs, so `posttrain --help`
loads neither torch nor transformers.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from posttrain import __version__
from posttrain.config import ConfigError, load_config
from posttrain.verbs import VERBS, Verb


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 fine, 2 an error of use, else what the verb returns."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"posttrain {__version__}")
        return 0
    found = _find_verb(words)
    if found is None:
        return _report_error("posttrain", _unknown_verb(words))
    verb, rest = found
    is_traceback_wanted = "--traceback" in rest
    try:
        return _run(verb, [word for word in rest if word != "--traceback"])
    except ConfigError as error:
        return _report_error(f"posttrain {verb.name}", str(error))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        if is_traceback_wanted:
            raise
        return _report_error(f"posttrain {verb.name}", f"{error}\n(--traceback shows where this came from)")


def resolve(path: str) -> Any:
    """Import `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _run(verb: Verb, argv: list[str]) -> int:
    config = load_config(resolve(verb.config), argv, prog=f"posttrain {verb.name}", summary=verb.summary)
    function: Callable[[Any], object] = resolve(verb.function)
    outcome = function(config)
    return outcome if isinstance(outcome, int) else 0


def _find_verb(words: list[str]) -> tuple[Verb, list[str]] | None:
    for verb in VERBS:
        parts = verb.name.split()
        if words[: len(parts)] == parts:
            return verb, words[len(parts) :]
    return None


def _unknown_verb(words: list[str]) -> str:
    """What to say of words that name no verb: the nearest one, or the second words that fit the first."""
    names = [verb.name for verb in VERBS]
    spoken = " ".join(word for word in words[:2] if not word.startswith("-"))
    family = [name for name in names if name.split()[0] == words[0]]
    near = difflib.get_close_matches(spoken, names, n=1, cutoff=0.7) or difflib.get_close_matches(words[0], names, n=1)
    if family and (spoken == words[0] or not near):
        return f"'posttrain {words[0]}' needs a second word: {', '.join(family)}"
    if near:
        return f"unknown verb {(spoken if ' ' in near[0] else words[0])!r}; did you mean {near[0]!r}?"
    return f"unknown verb {words[0]!r}; see posttrain --help"


def _overview() -> str:
    width = max(len(verb.name) for verb in VERBS)
    lines = [f"  {verb.name:<{width}}  {verb.summary}" for verb in VERBS]
    return "\n".join(
        [
            "usage: posttrain VERB [--config FILE.yaml] [--KEY VALUE ...]",
            "",
            "Post-train language models with token-level Q/value objectives.",
            "",
            *lines,
            "",
            "posttrain VERB --help lists its keys; --dry-run prints the resolved config; posttrain --version.",
        ]
    )


def _report_error(prog: str, message: str) -> int:
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2
