"""New games of all six types, made from the rooms of training games: for training, at will.

A training room is taken with its start; some objects are moved to other receptacles that can hold them; a goal is
drawn that the room allows and that does not hold yet; the oracle plans and the simulator replays the plan. What is not
won is thrown away. Validation games are refused as bases.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from posttrain.alfworld.agents import AgentName
from posttrain.alfworld.environment import require_engine
from posttrain.alfworld.games import GOAL_IN_GRAMMAR, Game, Split, TaskType, read_games, write_tree
from posttrain.alfworld.goals import GOAL_TEXTS, goal_pddl
from posttrain.alfworld.oracle import NoPlanError, plan_in_room
from posttrain.alfworld.processes import GameProcess
from posttrain.alfworld.room import FACT, Room, read_room
from posttrain.alfworld.simulator import Simulator

GENERATED = "generated"  # first part of the games' ids, where official ones have their split
MAX_MOVED = 8  # objects that change their place; more than that makes rooms that look like no official one
PROBLEM_NAME = re.compile(r"\(problem\s+\S+\)")
TRIES_PER_GAME = 1000


@dataclass(frozen=True, slots=True)
class GenerateConfig:
    """How many games to make, and from what."""

    output: Path = field(metadata={"help": "Folder to write the games into, in the official layout."})
    n_games: int = field(default=100, metadata={"help": "Games to make, the task types in turn."})
    seed: int = field(default=0, metadata={"help": "Of rooms, places and goals; another one gives other games."})
    task_types: tuple[TaskType, ...] = field(default=tuple(TaskType), metadata={"help": "Task types to make."})
    folder: Path | None = field(default=None, metadata={"help": "Folder of the official games; null: ALFWORLD_DATA."})
    limit: int | None = field(default=None, metadata={"help": "Take the first so many training games as bases."})
    is_engine_checked: bool = field(
        default=False,
        metadata={"help": "Also replay every plan on the real engine (2 s each); a lost game is an error."},
    )


def write_generated(config: GenerateConfig) -> None:
    """Make new games and write them as they come, each with its expert plan."""
    bases = read_games(Split.TRAIN, folder=config.folder, limit=config.limit)
    games = generate_games(bases, config.n_games, seed=config.seed, task_types=config.task_types)
    if config.is_engine_checked:
        require_engine()
    with GameProcess(seconds_per_game=300.0) as process:
        for game in tqdm(games, total=config.n_games, unit="game", desc="generate"):
            if config.is_engine_checked:
                record = process.play(game, AgentName.WALKTHROUGH, seed=0, max_steps=len(game.walkthrough))
                if not record.is_won or record.n_inadmissible:
                    raise ValueError(f"{game.game_id}: the engine does not win by the plan ({record.failure})")
            write_tree([game], config.output)
    print(f"{config.output}: {config.n_games:,} games")


def generate_games(
    bases: Sequence[Game], n_games: int, *, seed: int, task_types: Sequence[TaskType] = tuple(TaskType)
) -> Iterator[Game]:
    """`n_games` new games, the task types in turn, each from a base drawn at random; the same for the same arguments.

    Raises ValueError for a base that is no training game, and when no base allows a task type.
    """
    forbidden = next((game.game_id for game in bases if not game.game_id.startswith(f"{Split.TRAIN}/")), None)
    if forbidden is not None or not bases:
        raise ValueError(f"bases hold {forbidden or 'no game'}, expected games of the training split")
    for number in range(n_games):
        task_type = task_types[number % len(task_types)]
        rng = random.Random(f"{seed}/{number}")
        for _ in range(TRIES_PER_GAME):
            game = generate_game(rng.choice(bases), task_type, rng, trial=f"trial_G{seed}_{number:06d}")
            if game is not None:
                yield game
                break
        else:
            raise ValueError(f"none of {TRIES_PER_GAME} draws from {len(bases)} rooms allows {task_type}")


def generate_game(base: Game, task_type: TaskType, rng: random.Random, *, trial: str) -> Game | None:
    """One new game in the room of `base`, or None where this draw gives none that the oracle wins."""
    problem = _shuffled(base, rng)
    room = read_room(replace(base, pddl_problem=problem))
    goals = _possible_goals(room, task_type)
    if not goals:
        return None
    names = _official_type_names(base.pddl_problem)
    object_target, target = (names[lowered] for lowered in rng.choice(goals))
    text = rng.choice(GOAL_TEXTS[task_type]).format(object=object_target.lower(), target=target.lower())
    problem = PROBLEM_NAME.sub(f"(problem plan_{trial})", problem, count=1)
    game = replace(
        base,
        game_id=f"{GENERATED}/{_task_name(task_type, object_target, target, base.floor_plan)}/{trial}",
        task_type=task_type,
        goal=text,
        object_target=object_target,
        receptacle_target="" if task_type is TaskType.LOOK else target,
        lamp_target=target if task_type is TaskType.LOOK else "",
        walkthrough=(),
        pddl_problem=f"{problem}{goal_pddl(task_type, object_target, target)}\n)\n",
        grammar=GOAL_IN_GRAMMAR.sub(lambda _: f'Your task is to: {text}."', base.grammar, count=1),
    )
    try:
        plan = plan_in_room(room, game)
    except NoPlanError:
        return None
    return replace(game, walkthrough=tuple(plan)) if _wins(game, plan) else None


def _wins(game: Game, plan: Sequence[str]) -> bool:
    """Whether the plan is needed, every command of it is admissible, and the last one reaches the goal."""
    simulator = Simulator(game)
    observation = simulator.reset()
    for command in plan:
        if observation.is_won or command not in observation.admissible:
            return False
        observation = simulator.step(command)
    return observation.is_won


def _shuffled(base: Game, rng: random.Random) -> str:
    """The problem up to its goal, with up to MAX_MOVED objects in other places."""
    head, facts = _split_problem(base.pddl_problem)
    location = {receptacle: place for _, receptacle, place in _of(facts, "receptacleAtLocation")}
    kind = {fact[1]: fact[2] for fact in facts if fact[0] in ("receptacleType", "objectType")}
    can_contain = {(fact[1], fact[2]) for fact in _of(facts, "canContain")}
    for thing in rng.sample(_movable(facts), k=min(rng.randint(1, MAX_MOVED), len(_movable(facts)))):
        places = [r for r in sorted(location) if (kind[r], kind[thing]) in can_contain]
        if places:
            place = rng.choice(places)
            facts = [f for f in facts if f[:2] not in (("inReceptacle", thing), ("objectAtLocation", thing))]
            facts += [("inReceptacle", thing, place), ("objectAtLocation", thing, location[place])]
    return head + "\n".join(f"        ({' '.join(fact)})" for fact in facts) + "\n        )\n\n        "


def _movable(facts: Sequence[tuple[str, ...]]) -> list[str]:
    """Objects that can be picked up, lie in one receptacle, and neither hold nor are held by another object."""
    inside = [fact[1] for fact in _of(facts, "inReceptacle")]
    nested = {thing for fact in _of(facts, "inReceptacleObject") for thing in fact[1:]}
    able = {fact[1] for fact in _of(facts, "pickupable")}
    return sorted(thing for thing in able - nested if inside.count(thing) == 1)


def _possible_goals(room: Room, task_type: TaskType) -> list[tuple[str, str]]:
    """(object type, target type), lower case with "type": what the facts of the room may allow; the plan decides."""
    objects = {room.object_type[thing] for thing in room.is_pickupable & room.object_type.keys()}
    if task_type is TaskType.LOOK:
        lamps = {room.object_type[lamp] for lamp, _ in room.inside if lamp in room.is_toggleable}
        return sorted((thing, lamp) for thing in objects for lamp in lamps)
    receptacles = set(room.receptacle_type.values())
    return sorted((o, r) for r, o in room.can_contain if o in objects and r in receptacles)


def _official_type_names(pddl_problem: str) -> dict[str, str]:
    """ "desklamptype" -> "DeskLamp", as the problem writes its types."""
    _, facts = _split_problem(pddl_problem)
    types = {fact[2] for fact in facts if fact[0] in ("objectType", "receptacleType")}
    return {name.lower(): name.removesuffix("Type") for name in types}


def _split_problem(pddl_problem: str) -> tuple[str, list[tuple[str, ...]]]:
    """The text up to and with `(:init`, and the first facts in the case of the file."""
    head, _, rest = pddl_problem.partition("(:init")
    init = rest.partition("(:goal")[0]
    return f"{head}(:init\n", [(match[1], *match[2].split()) for match in FACT.finditer(init)]


def _of(facts: Sequence[tuple[str, ...]], predicate: str) -> list[tuple[str, ...]]:
    return [fact for fact in facts if fact[0] == predicate]


def _task_name(task_type: TaskType, object_target: str, target: str, floor_plan: str) -> str:
    """As official folders are named: type-Object-None-Target-number of the room."""
    return f"{task_type}-{object_target}-None-{target}-{floor_plan.removeprefix('FloorPlan')}"
