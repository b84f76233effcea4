"""The named protocols: what the page says of them is what they are."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

from posttrain.alfworld.protocol import REACT_INSTRUCTION, EpisodeProtocol, ProtocolName

PAGE = Path(__file__).resolve().parents[2] / "docs/evaluation/alfworld.md"


def test_instruction_on_the_page_is_the_one_that_is_sent() -> None:
    assert indent(REACT_INSTRUCTION, "  ") in PAGE.read_text(encoding="utf-8")


def test_first_observation_comes_without_the_line_of_welcome() -> None:
    first = "-= Welcome to TextWorld, ALFRED! =-\n\nYou see a bed 1.\n\nYour task is to: sleep."
    instruction, ok, task = EpisodeProtocol(ProtocolName.REACT).opening(first)
    assert (instruction.role, ok.content) == ("user", "OK")
    assert task.content == "You see a bed 1.\nYour task is to: sleep."


def test_action_is_the_line_after_the_first_mark() -> None:
    reply = "Thought: Action is needed\nAction: go to bed 1\nAction: look"
    assert EpisodeProtocol(ProtocolName.REACT).command_in(reply) == "go to bed 1"
    assert EpisodeProtocol(ProtocolName.REACT).command_in("Action:") is None
    assert EpisodeProtocol(ProtocolName.COMMAND).command_in(" look\n") == "look"
