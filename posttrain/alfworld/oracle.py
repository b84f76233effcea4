"""A rule-based expert that reads the first facts of a game and writes down the whole plan: no search, no play."""

from __future__ import annotations

from dataclasses import dataclass, field

from posttrain.alfworld.games import Game, TaskType
from posttrain.alfworld.room import FRIDGE_TYPES, MICROWAVE_TYPES, SINK_TYPES, Room, read_room

TREATMENTS = {
    TaskType.CLEAN: ("clean", SINK_TYPES),
    TaskType.HEAT: ("heat", MICROWAVE_TYPES),
    TaskType.COOL: ("cool", FRIDGE_TYPES),
}


class NoPlanError(ValueError):
    """The facts allow no plan by the oracle's rules; the message says what is missing."""


def oracle_plan(game: Game) -> list[str]:
    """Commands that reach the goal from the first state. Raises NoPlanError when the rules find none."""
    return plan_in_room(read_room(game), game)


def plan_in_room(room: Room, game: Game) -> list[str]:
    """As oracle_plan, in a room that has been read; only the game's task type and targets are used."""
    plan = _Plan(room, at=room.start)
    if game.task_type is TaskType.LOOK:
        _look(plan, game)
    elif game.task_type is TaskType.PICK_TWO:
        _pick_two(plan, game)
    else:
        _pick(plan, game)
    return plan.commands


@dataclass(slots=True)
class _Plan:
    """The commands so far, and where they have left the agent and the doors."""

    room: Room
    at: str
    commands: list[str] = field(default_factory=list)
    opened: set[str] = field(default_factory=set)

    def go(self, receptacle: str) -> None:
        """To the receptacle, unless the agent stands there: the engine has no command that would change nothing."""
        if self.room.location[receptacle] != self.at:
            self.commands.append(f"go to {self.room.name[receptacle]}")
            self.at = self.room.location[receptacle]

    def reach_into(self, receptacle: str) -> None:
        self.go(receptacle)
        if receptacle in self.room.is_openable and receptacle not in self.opened:
            self.commands.append(f"open {self.room.name[receptacle]}")
            self.opened.add(receptacle)

    def take(self, thing: str, receptacle: str) -> None:
        self.reach_into(receptacle)
        self.commands.append(f"take {self.room.name[thing]} from {self.room.name[receptacle]}")

    def put(self, thing: str, receptacle: str) -> None:
        self.reach_into(receptacle)
        self.commands.append(f"move {self.room.name[thing]} to {self.room.name[receptacle]}")


def _pick(plan: _Plan, game: Game) -> None:
    """Take one object, treat it where the task says so, put it down."""
    room = plan.room
    thing, source = _takeable(room, game)[0]
    target = _targets(room, game)[0]
    plan.take(thing, source)
    if game.task_type in TREATMENTS:
        verb, types = TREATMENTS[game.task_type]
        places = room.receptacles_of(types)
        if not places:
            raise NoPlanError(f"{game.game_id}: nothing to {verb} with, needs one of {', '.join(sorted(types))}")
        plan.go(places[0])
        plan.commands.append(f"{verb} {room.name[thing]} with {room.name[places[0]]}")
    plan.put(thing, target)


def _pick_two(plan: _Plan, game: Game) -> None:
    """Fill one receptacle of the target type: the one that needs the fewest objects."""
    room = plan.room
    things = _takeable(room, game)
    wanted = room.objects_of(_type(game.object_target))

    def n_inside(receptacle: str) -> int:
        return sum((thing, receptacle) in room.inside for thing in wanted)

    target = max(_targets(room, game), key=n_inside)
    outside = [(thing, source) for thing, source in things if (thing, target) not in room.inside]
    n_missing = max(0, 2 - n_inside(target))
    if len(outside) < n_missing:
        raise NoPlanError(f"{game.game_id}: {len(outside)} {game.object_target} to take, needs {n_missing}")
    for thing, source in outside[:n_missing]:
        plan.take(thing, source)
        plan.put(thing, target)


def _look(plan: _Plan, game: Game) -> None:
    """Take the object to the lamp and turn the lamp on."""
    room = plan.room
    thing, source = _takeable(room, game)[0]
    lamps = [
        (lamp, receptacle)
        for lamp, receptacle in sorted(room.inside)
        if room.object_type[lamp] == _type(game.lamp_target) and lamp in room.is_toggleable
    ]
    if not lamps:
        raise NoPlanError(f"{game.game_id}: no {game.lamp_target} that can be switched stands on a receptacle")
    lamp, stand = lamps[0]
    plan.take(thing, source)
    plan.go(stand)
    plan.commands.append(f"use {room.name[lamp]}")


def _takeable(room: Room, game: Game) -> list[tuple[str, str]]:
    """(object, receptacle that holds it) of the goal's type, fit for its treatment; each object once.

    Objects in a receptacle of the target type come last: what is there already need not be moved.
    """
    able = {
        TaskType.CLEAN: room.is_cleanable,
        TaskType.HEAT: room.is_heatable,
        TaskType.COOL: room.is_coolable,
    }.get(game.task_type, room.is_pickupable)
    found: dict[str, str] = {}
    for thing, receptacle in sorted(room.inside):
        is_fit = thing in room.is_pickupable and thing in able
        if is_fit and room.object_type[thing] == _type(game.object_target):
            found.setdefault(thing, receptacle)
    if not found:
        raise NoPlanError(f"{game.game_id}: no {game.object_target} that can be taken lies in a receptacle")
    target_type = _type(game.receptacle_target)
    return sorted(found.items(), key=lambda item: room.receptacle_type[item[1]] == target_type)


def _targets(room: Room, game: Game) -> list[str]:
    """Receptacles of the target type, if they may hold the object; open ones first."""
    target_type, object_type = _type(game.receptacle_target), _type(game.object_target)
    targets = room.receptacles_of({target_type})
    if not targets or (target_type, object_type) not in room.can_contain:
        raise NoPlanError(f"{game.game_id}: no {game.receptacle_target} that may hold {game.object_target}")
    return sorted(targets, key=lambda receptacle: receptacle in room.is_openable)


def _type(target: str) -> str:
    return f"{target.lower()}type"
