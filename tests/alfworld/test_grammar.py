"""Commands of older prompts in the installed grammar."""

from __future__ import annotations

import pytest

from posttrain.alfworld.games import Game
from posttrain.alfworld.grammar import ACTION_GRAMMAR, to_installed_grammar, transcript_to_installed_grammar


@pytest.mark.parametrize("relation", ["in/on", "in", "on"])
def test_old_put_becomes_move(relation: str) -> None:
    assert to_installed_grammar(f"put apple 1 {relation} fridge 2") == "move apple 1 to fridge 2"


@pytest.mark.parametrize(
    "command", ["take apple 1 from fridge 2", "move apple 1 to fridge 2", "put the apple away", ""]
)
def test_other_texts_are_left_as_they_are(command: str) -> None:
    assert to_installed_grammar(command) == command


def test_transcript_is_translated_in_commands_and_answers() -> None:
    old = "> put mug 1 in/on desk 2\nYou put the mug 1 in/on the desk 2.\n> go to bed 1"
    assert transcript_to_installed_grammar(old) == (
        "> move mug 1 to desk 2\nYou move the mug 1 to the desk 2.\n> go to bed 1"
    )


def test_engines_own_command_templates_are_the_stated_grammar(engine_kitchen: Game) -> None:
    # The engine's grammar also has templates of actions that its domain leaves out (put ... into ...).
    stated = {template.split(" {")[0] for template in ACTION_GRAMMAR}
    shown = {line.split(":: ")[1].strip('";').split(" {")[0].split(" [")[0] for line in templates(engine_kitchen)}
    assert stated <= shown
    assert shown - stated == {"put"}


def templates(game: Game) -> list[str]:
    return [line for line in game.grammar.splitlines() if line.strip().startswith("template ::")]
