"""ALFWorld's recorded games by type of task: for the report, in the form of accuracy by tag."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from posttrain.alfworld.games import TaskType
from posttrain.alfworld.play import GameRecord
from posttrain.evaluation.by_tag import TagValue
from posttrain.evaluation.comparison import accuracy_over_problems

ALL = "all types"


def game_files(folder: Path) -> list[Path]:
    """The .jsonl files of a folder whose first line is the record of a game."""
    return [path for path in sorted(folder.glob("*.jsonl")) if _holds_games(path)]


def games_by_type(records: Iterable[GameRecord]) -> dict[str, tuple[TagValue, ...]]:
    """For each split, the share of games that each agent won, by type of task and in all.

    The two splits are never put together. Wilson's interval, or with several seeds a bootstrap over games.
    """
    by_split: dict[str, list[GameRecord]] = {}
    for record in records:
        by_split.setdefault(record.game_id.partition("/")[0], []).append(record)
    return {
        f"task type, {split}": (
            *(
                _tag_value(task_type.value, split, own)
                for task_type in TaskType
                if (own := [record for record in games if record.task_type is task_type])
            ),
            _tag_value(ALL, split, games),
        )
        for split, games in sorted(by_split.items())
    }


def _tag_value(value: str, split: str, games: Sequence[GameRecord]) -> TagValue:
    won: dict[str, dict[str, list[bool]]] = {}
    for game in games:
        won.setdefault(f"{game.agent}/{split}", {}).setdefault(game.game_id, []).append(game.is_won)
    accuracy = {label: accuracy_over_problems(by_game) for label, by_game in won.items()}
    return TagValue(value, max(map(len, won.values())), accuracy)


def _holds_games(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and "game_id" in row
