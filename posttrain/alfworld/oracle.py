"""Rule-based experts that write down a whole plan from the first facts of a game: no play.

One uses all it reads; the other looks for things as someone must who sees only what the game shows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
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


def search_plan(game: Game, rng: random.Random, *, p_jump: float) -> list[str]:
    """As oracle_plan, but an object is only taken after its receptacle was looked into.

    The search goes through the receptacles as the first text lists them, from a drawn one on and round, and leaps to
    a drawn one with probability `p_jump` before each. So every command follows from what was shown and from chance,
    and a policy can imitate it. The one exception is PICK_TWO, where the plan knows which receptacle of the target
    type holds an object of the wanted type already.
    """
    room = read_room(game)
    return plan_in_room(room, game, unseen=_search_order(room.receptacles, rng, p_jump))


def _search_order(receptacles: Sequence[str], rng: random.Random, p_jump: float) -> list[str]:
    left, order = list(receptacles), []
    at = rng.randrange(len(left))
    while left:
        at %= len(left)  # behind the last one comes the first
        order.append(left.pop(at))  # the next one has moved to its place
        if left and rng.random() < p_jump:
            at = rng.randrange(len(left))
    return order


def plan_in_room(room: Room, game: Game, *, unseen: Sequence[str] = ()) -> list[str]:
    """As oracle_plan, in a room that has been read; only the game's task type and targets are used.

    unseen: receptacles whose contents count as unknown until the plan has looked into them, in this order.
    """
    plan = _Plan(room, at=room.start, unseen=list(unseen))
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
    unseen: list[str]
    commands: list[str] = field(default_factory=list)
    opened: set[str] = field(default_factory=set)

    def find(self, candidates: Sequence[tuple[str, str]]) -> tuple[str, str]:
        """The first (object, receptacle) whose receptacle was seen, after looking into others until there is one."""
        while True:
            for thing, receptacle in candidates:
                if receptacle not in self.unseen:
                    return thing, receptacle
            self.look_into(self.unseen[0])

    def look_into(self, receptacle: str) -> None:
        is_shown_on_arrival = self.room.location[receptacle] != self.at
        self.reach_into(receptacle)
        if not is_shown_on_arrival and receptacle not in self.room.is_openable:
            self.commands.append(f"examine {self.room.name[receptacle]}")
        self.unseen.remove(receptacle)

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
    thing, source = plan.find(_takeable(room, game))
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
    for _ in range(n_missing):
        thing, source = plan.find(outside)
        outside.remove((thing, source))
        plan.take(thing, source)
        plan.put(thing, target)


def _look(plan: _Plan, game: Game) -> None:
    """Take the object to the lamp and turn the lamp on."""
    room = plan.room
    things = _takeable(room, game)
    lamps = [
        (lamp, receptacle)
        for lamp, receptacle in sorted(room.inside)
        if room.object_type[lamp] == _type(game.lamp_target) and lamp in room.is_toggleable
    ]
    if not lamps:
        raise NoPlanError(f"{game.game_id}: no {game.lamp_target} that can be switched stands on a receptacle")
    plan.take(*plan.find(things))
    lamp, stand = plan.find(lamps)
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
