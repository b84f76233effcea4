"""The official ALFWorld text games (json_2.1.1), read from the official tree or from its packed form.

A game is one room, one goal and a stored walkthrough. This module needs neither the engine nor torch.
"""

from __future__ import annotations

import json
import lzma
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

OFFICIAL_FOLDER_VARIABLE = "ALFWORLD_DATA"  # of the alfworld package: the folder that holds json_2.1.1
DATA_FOLDER_VARIABLE = "POSTTRAIN_DATA"  # of this library: the folder that holds alfworld
SIBLING_DATA_FOLDER = Path("../shared/data")
OFFICIAL_VERSION = "json_2.1.1"

GAME_FILE, TASK_FILE = "game.tw-pddl", "traj_data.json"
DOMAIN_FILE, GRAMMAR_FILE = "alfred.pddl", "alfred.twl2"
GOAL_PLACEHOLDER = "UNKNOWN GOAL"
GOAL_IN_GRAMMAR = re.compile(r"Your task is to: (.*?)\.\"")


class TaskType(StrEnum):
    """The six task types, in the order of the paper's tables (Shridhar et al. 2021, arXiv 2010.03768)."""

    PICK = "pick_and_place_simple"
    LOOK = "look_at_obj_in_light"
    CLEAN = "pick_clean_then_place_in_recep"
    HEAT = "pick_heat_then_place_in_recep"
    COOL = "pick_cool_then_place_in_recep"
    PICK_TWO = "pick_two_obj_and_place"


class Split(StrEnum):
    """The official splits; `valid_seen` has new games in rooms of the training set, `valid_unseen` new rooms."""

    TRAIN = "train"
    VALID_SEEN = "valid_seen"
    VALID_UNSEEN = "valid_unseen"


N_GAMES = {Split.TRAIN: 3553, Split.VALID_SEEN: 140, Split.VALID_UNSEEN: 134}


class GamesError(ValueError):
    """Games that cannot be found or read; the message says where and what was expected."""


@dataclass(frozen=True, slots=True)
class Game:
    game_id: str  # "valid_seen/pick_and_place_simple-Book-None-SideTable-329/trial_T20190908_050633_745514"
    task_type: TaskType
    goal: str  # "put some book on sidetable"
    object_target: str  # "Book"; a type, as in the name of the task
    receptacle_target: str  # "SideTable"; empty for LOOK
    lamp_target: str  # "DeskLamp"; empty for all but LOOK
    floor_plan: str  # "FloorPlan329"
    walkthrough: tuple[str, ...]  # the stored expert commands, in the grammar of the installed engine
    pddl_problem: str  # objects, first facts and goal
    pddl_domain: str
    grammar: str  # TextWorld's, with the goal's text filled in


def read_games(
    split: Split,
    *,
    folder: Path | None = None,
    limit: int | None = None,
    task_types: Collection[TaskType] = tuple(TaskType),
) -> list[Game]:
    """The games of a split in the order of their ids; the first `limit` of them (None: all, and their number checked).

    `task_types` leaves out the games of other types, before the limit is counted.

    `folder` holds the official tree (`<split>/<task>/<trial>/game.tw-pddl`, with or without a `json_2.1.1` above) or
    the packed files (`games_<split>.jsonl.xz` beside `alfred.pddl` and `alfred.twl2`). None looks in the folder that
    ALFWORLD_DATA names, then in `alfworld` below POSTTRAIN_DATA, then below ../shared/data.

    As in the alfworld package, trials that move a container, slice, or were found unsolvable are no part of a split.
    Raises GamesError when there are none, or not as many as the official split has.
    """
    found = games_folder(folder)
    games: list[Game] = []
    n_read = 0
    for game in iterate_games(found, split):
        if limit is not None and len(games) == limit:
            return games
        n_read += 1
        if game.task_type in task_types:
            games.append(game)
    if limit is None and n_read != N_GAMES[split]:
        raise GamesError(
            f"{found}: {split} has {n_read} games, the official split {N_GAMES[split]}: is the download whole? "
            "`alfworld-download` fetches it again; to play some of the games, give a limit"
        )
    return games


def read_folder(
    folder: Path, *, limit: int | None = None, task_types: Collection[TaskType] = tuple(TaskType)
) -> list[Game]:
    """The first `limit` games (None: all) of these types anywhere below a folder in the official layout."""
    found = (game for game in _tree_games(folder, f"**/{TASK_FILE}") if game.task_type in task_types)
    games = list(islice(found, limit))
    if not games:
        raise GamesError(f"no games below {folder}: expected <name>/<task>/<trial>/{GAME_FILE} beside {TASK_FILE}")
    return games


def games_folder(folder: Path | None = None) -> Path:
    """The folder given, or the first that exists of those that the environment names. Raises GamesError."""
    official, ours = os.environ.get(OFFICIAL_FOLDER_VARIABLE), os.environ.get(DATA_FOLDER_VARIABLE)
    candidates = [
        *([Path(official)] if official else []),
        *([Path(ours) / "alfworld"] if ours else []),
        SIBLING_DATA_FOLDER / "alfworld",
    ]
    for candidate in [folder] if folder is not None else candidates:
        for place in (candidate / OFFICIAL_VERSION, candidate):
            if any(_packed(place, split).is_file() or (place / split).is_dir() for split in Split):
                return place
    looked = ", ".join(str(place) for place in ([folder] if folder is not None else candidates))
    raise GamesError(
        f"no ALFWorld games in {looked}: expected {{train,valid_seen,valid_unseen}} folders of the official tree, or "
        f"games_<split>.jsonl.xz. `alfworld-download` fetches the tree; name its folder in {OFFICIAL_FOLDER_VARIABLE}"
    )


def iterate_games(folder: Path, split: Split) -> Iterator[Game]:
    """The games of one split in a folder as `games_folder` gives it, in order of their ids, without a count check."""
    if _packed(folder, split).is_file():
        return _packed_games(folder, split)
    if not (folder / split).is_dir():
        raise GamesError(f"{folder}: has no {split}, neither a folder of that name nor {_packed(folder, split).name}")
    return _tree_games(folder, f"{split}/*/*/{TASK_FILE}")


def write_tree(games: Iterable[Game], folder: Path) -> None:
    """Write games in the official layout, which the alfworld package reads as well."""
    for game in games:
        place = folder / game.game_id
        place.mkdir(parents=True, exist_ok=True)
        (place / GAME_FILE).write_text(json.dumps(engine_data(game)), encoding="utf-8")
        (place / "initial_state.pddl").write_text(game.pddl_problem, encoding="utf-8")
        (place / TASK_FILE).write_text(json.dumps(task_data(game)), encoding="utf-8")


def engine_data(game: Game) -> dict[str, object]:
    """What TextWorld's PDDL engine loads: the contents of a game.tw-pddl."""
    return {
        "pddl_domain": game.pddl_domain,
        "grammar": game.grammar,
        "pddl_problem": game.pddl_problem,
        "solvable": True,
        "walkthrough": list(game.walkthrough),
    }


def task_data(game: Game) -> dict[str, object]:
    """The part of a traj_data.json that text games use."""
    return {
        "task_type": game.task_type.value,
        "task_id": game.game_id.rpartition("/")[2],
        "pddl_params": {
            "object_target": game.object_target,
            "parent_target": game.receptacle_target,
            "toggle_target": game.lamp_target,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": game.floor_plan},
        "turk_annotations": {"anns": []},
    }


def _packed(folder: Path, split: Split) -> Path:
    return folder / f"games_{split}.jsonl.xz"


def _packed_games(folder: Path, split: Split) -> Iterator[Game]:
    domain = (folder / DOMAIN_FILE).read_text(encoding="utf-8")
    grammar = (folder / GRAMMAR_FILE).read_text(encoding="utf-8")
    with lzma.open(_packed(folder, split), "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if not row["solvable"]:
                continue
            yield _game(
                row["id"],
                row["task"],
                row,
                floor_plan=row["floor_plan"],
                walkthrough=row["walkthrough"],
                problem=row["pddl_problem"],
                domain=domain,
                grammar=grammar.replace(GOAL_PLACEHOLDER, row["task"]),
            )


def _tree_games(folder: Path, pattern: str) -> Iterator[Game]:
    for path in sorted(folder.glob(pattern)):
        task_id = path.parent.relative_to(folder).as_posix()
        game_path = path.with_name(GAME_FILE)
        if "movable" in task_id or "Sliced" in task_id or not game_path.is_file():
            continue
        data = json.loads(game_path.read_text(encoding="utf-8"))
        if not data.get("solvable"):
            continue
        task = json.loads(path.read_text(encoding="utf-8"))
        goal = GOAL_IN_GRAMMAR.search(data["grammar"])
        if goal is None:
            raise GamesError(f"{game_path}: its grammar has no 'Your task is to: ...': is it of another version?")
        yield _game(
            task_id,
            goal[1],
            task,
            floor_plan=task["scene"]["floor_plan"],
            walkthrough=data["walkthrough"],
            problem=data["pddl_problem"],
            domain=data["pddl_domain"],
            grammar=data["grammar"],
        )


def _game(
    game_id: str,
    goal: str,
    task: dict[str, object],
    *,
    floor_plan: str,
    walkthrough: list[str],
    problem: str,
    domain: str,
    grammar: str,
) -> Game:
    targets = task["pddl_params"]
    assert isinstance(targets, dict)
    return Game(
        game_id=game_id,
        task_type=TaskType(str(task["task_type"])),
        goal=goal,
        object_target=targets["object_target"],
        receptacle_target=targets["parent_target"],
        lamp_target=targets["toggle_target"],
        floor_plan=floor_plan,
        walkthrough=tuple(walkthrough),
        pddl_problem=problem,
        pddl_domain=domain,
        grammar=grammar,
    )
