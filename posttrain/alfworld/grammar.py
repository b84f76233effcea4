"""The action grammar of the installed engine, and a translator for prompts written for older ones.

Since alfworld 0.4.0 an object is put down with `move X to Y`; before, it was `put X in/on Y`, which the engine now
answers with "Nothing happens.". Prompts and demonstrations of the time, ReAct's among them, have the old form.
"""

from __future__ import annotations

import re

GRAMMAR_VERSION = "0.4"  # first alfworld version of the grammar below; it is part of a protocol's name
ACTION_GRAMMAR = (
    "go to {receptacle}",
    "open {receptacle}",
    "close {receptacle}",
    "take {object} from {receptacle}",
    "move {object} to {receptacle}",
    "examine {object or receptacle}",
    "use {object}",
    "heat {object} with {receptacle}",
    "clean {object} with {receptacle}",
    "cool {object} with {receptacle}",
    "slice {object} with {object}",
    "look",
    "inventory",
    "help",
)

_ENTITY = r"[a-z]+ \d+"
_OLD_PUT = re.compile(rf"put ({_ENTITY}) (?:in/on|in|on|into|onto) ({_ENTITY})", re.IGNORECASE)
_OLD_ANSWER = re.compile(rf"You put the ({_ENTITY}) in/on the ({_ENTITY})\.")


def to_installed_grammar(command: str) -> str:
    """A command of the older grammar in the installed one; any other text unchanged.

    `put apple 1 in/on fridge 1` becomes `move apple 1 to fridge 1`. The old engine also took `in` or `on` alone.
    """
    old = _OLD_PUT.fullmatch(command.strip())
    return f"move {old[1].lower()} to {old[2].lower()}" if old else command


def transcript_to_installed_grammar(text: str) -> str:
    """A transcript or prompt with each old `put`, and the old engine's answer to it, in the installed grammar."""
    text = _OLD_PUT.sub(lambda old: f"move {old[1]} to {old[2]}", text)
    return _OLD_ANSWER.sub(lambda old: f"You move the {old[1]} to the {old[2]}.", text)
