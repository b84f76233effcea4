"""A game of our own in the official format: seven receptacles, eight objects."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from posttrain.alfworld.games import DOMAIN_FILE, GOAL_PLACEHOLDER, GRAMMAR_FILE, Game, TaskType
from posttrain.alfworld.goals import goal_pddl

# id -> (type, location, openable); the side table and the shelf are reached from one place.
RECEPTACLES = {
    "Cabinet_bar_1": ("Cabinet", "loc_bar_1", True),
    "CounterTop_bar_1": ("CounterTop", "loc_bar_2", False),
    "Fridge_bar_1": ("Fridge", "loc_bar_3", True),
    "Microwave_bar_1": ("Microwave", "loc_bar_4", True),
    "Shelf_bar_1": ("Shelf", "loc_bar_5", False),
    "SideTable_bar_1": ("SideTable", "loc_bar_5", False),
    "Sink_bar_1_bar_SinkBasin": ("SinkBasin", "loc_bar_6", False),
}
OBJECTS = {  # id -> (type, receptacle that holds it)
    "Apple_bar_1": ("Apple", "CounterTop_bar_1"),
    "Apple_bar_2": ("Apple", "Cabinet_bar_1"),
    "Bowl_bar_1": ("Bowl", "CounterTop_bar_1"),
    "Egg_bar_1": ("Egg", "Fridge_bar_1"),
    "DeskLamp_bar_1": ("DeskLamp", "SideTable_bar_1"),
    "Knife_bar_1": ("Knife", "CounterTop_bar_1"),
    "Mug_bar_1": ("Mug", "Shelf_bar_1"),
    "Mug_bar_2": ("Mug", "Sink_bar_1_bar_SinkBasin"),
}
FOOD = ("Apple", "Egg")
ABILITIES = {
    "cleanable": (*FOOD, "Bowl", "Knife", "Mug"),
    "heatable": (*FOOD, "Mug"),
    "coolable": (*FOOD, "Bowl", "Mug"),
    "pickupable": (*FOOD, "Bowl", "Knife", "Mug"),
    "sliceable": FOOD,
    "toggleable": ("DeskLamp",),
    "isReceptacleObject": ("Bowl",),
}
START = "loc_bar_9"


def small_game(
    task_type: TaskType = TaskType.HEAT,
    object_target: str = "Apple",
    target: str = "Fridge",
    *,
    goal: str = "heat some apple and put it in fridge",
    game_id: str = "train/small/trial_0",
    grammar: str = GOAL_PLACEHOLDER,
    domain: str = "",
) -> Game:
    is_look = task_type is TaskType.LOOK
    return Game(
        game_id=game_id,
        task_type=task_type,
        goal=goal,
        object_target=object_target,
        receptacle_target="" if is_look else target,
        lamp_target=target if is_look else "",
        floor_plan="FloorPlan0",
        walkthrough=(),
        pddl_problem=problem(goal_pddl(task_type, object_target, target)),
        pddl_domain=domain,
        grammar=grammar.replace(GOAL_PLACEHOLDER, goal),
    )


def for_engine(game: Game) -> Game:
    """The game with the domain and the grammar that the alfworld package carries."""
    package = find_spec("alfworld")  # importing it would make its data folder in the user's home
    assert package is not None and package.origin is not None
    data = Path(package.origin).with_name("data")
    grammar = (data / GRAMMAR_FILE).read_text(encoding="utf-8").replace(GOAL_PLACEHOLDER, game.goal)
    return replace(game, pddl_domain=(data / DOMAIN_FILE).read_text(encoding="utf-8"), grammar=grammar)


def problem(goal: str) -> str:
    locations = sorted({START, *(place for _, place, _ in RECEPTACLES.values())})
    object_types = sorted({kind for kind, _ in OBJECTS.values()})
    receptacle_types = sorted({kind for kind, _, _ in RECEPTACLES.values()} | {"Sink"})
    declared = [
        "agent1 - agent",
        *(f"{kind}Type - otype" for kind in object_types),
        *(f"{kind}Type - rtype" for kind in receptacle_types),
        *(f"{thing} - object" for thing in OBJECTS),
        *(f"{receptacle} - receptacle" for receptacle in RECEPTACLES),
        *(f"{place} - location" for place in locations),
    ]
    facts = [f"(atLocation agent1 {START})"]
    for receptacle, (kind, place, is_openable) in RECEPTACLES.items():
        facts += [f"(receptacleType {receptacle} {kind}Type)", f"(receptacleAtLocation {receptacle} {place})"]
        facts += [f"(openable {receptacle})"] if is_openable else []
        facts += [f"(canContain {kind}Type {other}Type)" for other in object_types if other != "DeskLamp"]
    for thing, (kind, receptacle) in OBJECTS.items():
        facts += [f"(objectType {thing} {kind}Type)", f"(inReceptacle {thing} {receptacle})"]
        facts += [f"(objectAtLocation {thing} {RECEPTACLES[receptacle][1]})"]
        facts += [f"({ability} {thing})" for ability, kinds in ABILITIES.items() if kind in kinds]
    lines = "\n        ".join(dict.fromkeys(facts))
    objects = "\n        ".join(declared)
    head = f"(define (problem plan_small)\n(:domain alfred)\n(:objects\n{objects}\n)\n"
    return f"{head}(:init\n        {lines}\n)\n{goal}\n)\n"
