"""The goals of the six task types: their texts and their PDDL, as ALFWorld writes them."""

from __future__ import annotations

from posttrain.alfworld.games import TaskType

# Both texts of a type are as frequent in the official games.
GOAL_TEXTS = {
    TaskType.PICK: ("put a {object} in {target}", "put some {object} on {target}"),
    TaskType.LOOK: ("look at {object} under the {target}", "examine the {object} with the {target}"),
    TaskType.CLEAN: ("put a clean {object} in {target}", "clean some {object} and put it in {target}"),
    TaskType.HEAT: ("put a hot {object} in {target}", "heat some {object} and put it in {target}"),
    TaskType.COOL: ("put a cool {object} in {target}", "cool some {object} and put it in {target}"),
    TaskType.PICK_TWO: ("put two {object} in {target}", "find two {object} and put them in {target}"),
}
_TREATED = {
    TaskType.CLEAN: ("cleanable", "isClean"),
    TaskType.HEAT: ("heatable", "isHot"),
    TaskType.COOL: ("coolable", "isCool"),
}


def goal_pddl(task_type: TaskType, object_target: str, target: str) -> str:
    """The `(:goal ...)` of a problem. `target` is a receptacle type, a lamp type for LOOK; types without "Type"."""
    if task_type is TaskType.LOOK:
        return _look(object_target, target)
    if task_type is TaskType.PICK_TWO:
        return _pick_two(object_target, target)
    able, treated = _TREATED.get(task_type, ("", ""))
    conditions = [
        *([f"({able} ?o)"] if able else []),
        f"(objectType ?o {object_target}Type)",
        f"(receptacleType ?r {target}Type)",
        *([f"({treated} ?o)"] if treated else []),
        "(inReceptacle ?o ?r)",
    ]
    return f"(:goal (and (exists (?r - receptacle) (exists (?o - object) (and {' '.join(conditions)})))))"


def _look(object_target: str, lamp: str) -> str:
    lit = (
        f"(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot {lamp}Type) "
        "(toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))"
    )
    held = f"(exists (?o - object ?a - agent) (and (objectType ?o {object_target}Type) (holds ?a ?o)))"
    return f"(:goal (and {lit} {held}))"


def _pick_two(object_target: str, target: str) -> str:
    types = f"(receptacleType ?r {target}Type)"
    second = (
        f"(exists (?o2 - object) (and (not (= ?o1 ?o2)) (objectType ?o2 {object_target}Type) {types} "
        "(inReceptacle ?o2 ?r)))"
    )
    first = f"(and (objectType ?o1 {object_target}Type) {types} (inReceptacle ?o1 ?r) {second})"
    return f"(:goal (and (exists (?r - receptacle) (exists (?o1 - object) {first}))))"
