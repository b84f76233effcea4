"""What prompts mean, worked out apart from the library: from the words of a text, and by logic between two prompts."""

from __future__ import annotations

from posttrain.vision.prompts import ImagePrompt, Relation, Wanted
from posttrain.vision.world import Scene, World

NUMBERS = {"a": 1, "two": 2, "three": 3, "four": 4}


def is_true(world: World, text: str, scene: Scene) -> bool:
    """Is the text, read word by word, true of the scene, and is it all that the scene shows?"""
    link = next((link for link in (" and ", *(f" {r.value} " for r in Relation)) if link in text), None)
    groups = []
    for part in text.split(link) if link else [text]:
        number, *colour, noun = part.split()
        shape = next(s for s in world.shapes if noun in (s, s + "s", s + "es"))
        things = [t for t in scene if world.shapes[t.shape] == shape]
        groups.append([t for t in things if colour in ([], [world.colours[t.colour]])])
        if len(groups[-1]) != NUMBERS[number]:
            return False
    if sum(map(len, groups)) != len(scene):
        return False
    if link in (None, " and "):
        return True
    (a,), (b,) = groups
    down, right = b.row - a.row, b.column - a.column  # from the first thing to the second
    offsets = {" left of ": (right, down), " right of ": (-right, down), " above ": (down, right)}
    along, across = offsets.get(link, (-down, right))
    return along > abs(across)


def entails(p: ImagePrompt, q: ImagePrompt) -> bool:
    """From the prompts alone: is q true of every scene that p is true of?

    Three ways: q is p in another wording; q is p without the colours ("a red ring" entails "a ring"); q is p without
    the relation ("a red ring left of a blue cross" entails "a red ring and a blue cross").
    """

    def is_case_of(a: Wanted, b: Wanted) -> bool:
        return (a.shape, a.count) == (b.shape, b.count) and b.colour in (None, a.colour)

    if q.relation is not None:
        return p.relation is not None and p.meaning == q.meaning
    if len(p.wanted) != len(q.wanted):
        return False
    return any(all(map(is_case_of, p.wanted, order)) for order in (q.wanted, q.wanted[::-1]))
