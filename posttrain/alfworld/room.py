"""What a game's first facts say of its room, by the names that the engine shows.

The engine lowers all names of the PDDL problem and shows an entity as its kind and a number ("desk 2"): entities of a
kind are numbered downwards in the order of their ids, and ids with "basin" in them get it added to their kind.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from posttrain.alfworld.games import Game

FACT = re.compile(r"\((\w+)((?:\s+\w+)*)\s*\)")
SINK_TYPES = frozenset({"sinktype", "sinkbasintype"})
MICROWAVE_TYPES = frozenset({"microwavetype"})
FRIDGE_TYPES = frozenset({"fridgetype"})
KNIFE_TYPES = frozenset({"knifetype", "butterknifetype"})

Fact = tuple[str, ...]  # predicate and arguments, lower case


@dataclass(frozen=True, slots=True)
class Room:
    """The facts of a room before the first command. Objects and receptacles go by their PDDL ids."""

    name: dict[str, str]  # id -> "desk 2"
    start: str  # location of the agent
    receptacles: tuple[str, ...]  # ids in sorted order, which is the engine's order in lists
    location: dict[str, str]  # receptacle -> location
    receptacle_type: dict[str, str]  # "desktype"
    object_type: dict[str, str]  # "booktype"; insertion in sorted order of the ids
    can_contain: frozenset[tuple[str, str]]  # (receptacle type, object type)
    inside: frozenset[tuple[str, str]]  # (object, receptacle); some objects are in a sink and in its basin
    object_location: frozenset[tuple[str, str]]  # (object, location)
    inside_object: frozenset[tuple[str, str]]  # (inner object, outer object)
    is_openable: frozenset[str]
    is_pickupable: frozenset[str]
    is_cleanable: frozenset[str]
    is_heatable: frozenset[str]
    is_coolable: frozenset[str]
    is_toggleable: frozenset[str]
    is_sliceable: frozenset[str]
    is_container: frozenset[str]  # objects that hold objects, such as a box
    is_cool: frozenset[str]

    def receptacles_of(self, types: Iterable[str]) -> list[str]:
        return [receptacle for receptacle in self.receptacles if self.receptacle_type[receptacle] in types]

    def objects_of(self, object_type: str) -> list[str]:
        return [thing for thing, its_type in self.object_type.items() if its_type == object_type]


def read_room(game: Game) -> Room:
    """The room of a game. Raises ValueError for first facts that official text games never have."""
    facts = first_facts(game.pddl_problem)
    by_predicate: defaultdict[str, list[Fact]] = defaultdict(list)
    for predicate, *arguments in facts:
        by_predicate[predicate].append(tuple(arguments))
    _require_known(by_predicate, game.game_id)

    def pairs(predicate: str) -> frozenset[tuple[str, str]]:
        return frozenset((first, second) for first, second in by_predicate[predicate])

    def members(predicate: str) -> frozenset[str]:
        return frozenset(first for (first,) in by_predicate[predicate])

    ((_, start),) = by_predicate["atlocation"]
    location = dict(pairs("receptacleatlocation"))
    return Room(
        name=entity_names(argument for fact in facts for argument in fact[1:]),
        start=start,
        receptacles=tuple(sorted(location)),
        location=location,
        receptacle_type=dict(pairs("receptacletype")),
        object_type=dict(sorted(pairs("objecttype"))),
        can_contain=pairs("cancontain"),
        inside=pairs("inreceptacle"),
        object_location=pairs("objectatlocation"),
        inside_object=pairs("inreceptacleobject"),
        is_openable=members("openable"),
        is_pickupable=members("pickupable"),
        is_cleanable=members("cleanable"),
        is_heatable=members("heatable"),
        is_coolable=members("coolable"),
        is_toggleable=members("toggleable"),
        is_sliceable=members("sliceable"),
        is_container=members("isreceptacleobject"),
        is_cool=members("iscool"),
    )


def first_facts(pddl_problem: str) -> list[Fact]:
    """The facts of a problem's `:init`, lower case, in the order of the file."""
    init = pddl_problem.lower().partition("(:init")[2].partition("(:goal")[0]
    return [(match[1], *match[2].split()) for match in FACT.finditer(init)]


def entity_names(ids: Iterable[str]) -> dict[str, str]:
    """The shown name of every entity among the ids; types and the agent, which have no number, are left out."""
    entities = sorted({entity for entity in ids if "_bar_" in entity})
    n_left = Counter(map(_kind, entities))
    names: dict[str, str] = {}
    for entity in entities:
        kind = _kind(entity)
        names[entity] = f"{kind} {n_left[kind]}"
        n_left[kind] -= 1
    return names


def _kind(entity: str) -> str:
    kind, _, _ = entity.partition("_bar_")
    return f"{kind}basin" if "basin" in entity else kind


_KNOWN = frozenset(
    {
        *("atlocation", "receptacleatlocation", "objectatlocation", "receptacletype", "objecttype", "cancontain"),
        *("inreceptacle", "inreceptacleobject", "isreceptacleobject", "iscool", "openable", "pickupable"),
        *("cleanable", "heatable", "coolable", "toggleable", "sliceable"),
    }
)


def _require_known(by_predicate: dict[str, list[Fact]], game_id: str) -> None:
    unknown = sorted(set(by_predicate) - _KNOWN)
    if unknown:
        raise ValueError(
            f"{game_id}: first facts of {', '.join(unknown)}, expected those of an official text game: "
            f"{', '.join(sorted(_KNOWN))}"
        )
    if len(by_predicate["atlocation"]) != 1:
        raise ValueError(f"{game_id}: the agent is at {len(by_predicate['atlocation'])} places, expected one")
