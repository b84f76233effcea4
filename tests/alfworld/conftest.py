"""Games for the tests: official ones where they are, and a small one of our own that is written here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from posttrain.alfworld.environment import require_engine
from posttrain.alfworld.games import Game, GamesError, Split, games_folder, read_games
from posttrain.alfworld.processes import GameProcess
from tests.alfworld.small_game import for_engine, small_game


@pytest.fixture(scope="session")
def official_games() -> dict[Split, list[Game]]:
    """All validation games and the first training games."""
    try:
        games_folder()
    except GamesError as error:
        pytest.skip(str(error))
    return {
        Split.VALID_SEEN: read_games(Split.VALID_SEEN),
        Split.VALID_UNSEEN: read_games(Split.VALID_UNSEEN),
        Split.TRAIN: read_games(Split.TRAIN, limit=300),
    }


@pytest.fixture(scope="session")
def kitchen() -> Game:
    """The small game: heat some apple and put it in fridge."""
    return small_game()


@pytest.fixture(scope="session")
def engine_kitchen(kitchen: Game) -> Game:
    """The small game as the real engine takes it."""
    try:
        require_engine()
    except ImportError as error:
        pytest.skip(str(error))
    return for_engine(kitchen)


@pytest.fixture(scope="session")
def engine_process(engine_kitchen: Game) -> Iterator[GameProcess]:
    """A process for the games of all tests, one after another: engines would pile up in the memory of pytest."""
    with GameProcess(seconds_per_game=300) as process:
        yield process
