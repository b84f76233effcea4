"""The tokenizer of the engine's templates gives every text back."""

from __future__ import annotations

import random

import pytest

from posttrain.alfworld.games import Game, Split, read_games
from posttrain.alfworld.oracle import oracle_plan
from posttrain.alfworld.protocol import without_banner
from posttrain.alfworld.simulator import Simulator
from posttrain.alfworld.vocabulary import episode_tokenizer
from tests.alfworld.small_game import small_game


def transcript(game: Game, *, seed: int) -> str:
    """The oracle's way, each command given twice and a random one behind it, as a conversation of lines."""
    rng, simulator = random.Random(seed), Simulator(game)
    seen = simulator.reset()
    text = f"{without_banner(seen.text)}\n>"
    for planned in oracle_plan(game):
        for command in (planned, planned, rng.choice(seen.admissible)):
            seen = simulator.step(command)
            text += f"{command}\n{seen.text}\n>"
    return text


def test_tokens_are_templates_and_names() -> None:
    tokenizer = episode_tokenizer([small_game()])
    assert tokenizer.tokenize("go to cabinet 1\nYou arrive at cabinet 1. The cabinet 1 is closed.\n>") == [
        *("go to", " cabinet 1", "\n", "You arrive at", " cabinet 1", ". The", " cabinet 1", " is closed.", "\n>")
    ]
    # The game has apples 1 and 2. " a" is a template and begins " apple": a template never ends inside a word.
    assert tokenizer.tokenize(", a apple 2, and a apple 12.") == [
        *(", a", " apple 2", ", and a", " apple", " 12", ".")
    ]


def test_texts_of_games_come_back_from_their_ids() -> None:
    game = small_game()
    tokenizer = episode_tokenizer([game])
    for seed in range(20):
        text = transcript(game, seed=seed)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, seed
        assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_vocabulary_of_training_games_covers_validation_games(official_games: dict[Split, list[Game]]) -> None:
    tokenizer = episode_tokenizer(read_games(Split.TRAIN))
    for split in (Split.VALID_SEEN, Split.VALID_UNSEEN):
        for game in official_games[split]:
            text = transcript(game, seed=0)
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text, game.game_id
