"""The grammar of image prompts: six families as in GenEval (Ghosh et al. 2023), and scenes drawn for them.

single       a ring                              of any colour
two          a ring and a cross                  of any colours, two shapes
counting     three green crosses                 two to four
colours      a red ring
position     a red square left of a blue ring
attribution  a red square and a blue ring        two different kinds
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from itertools import permutations, product

import torch

from posttrain.vision.world import Scene, Thing, World


class Family(StrEnum):
    SINGLE = "single"
    TWO = "two"
    COUNTING = "counting"
    COLOURS = "colours"
    POSITION = "position"
    ATTRIBUTION = "attribution"


HELD_OUT_FAMILIES = (Family.COUNTING, Family.POSITION, Family.ATTRIBUTION)
NUMERALS = {1: "a", 2: "two", 3: "three", 4: "four"}
PLURALS = {"square": "squares", "ring": "rings", "cross": "crosses", "bar": "bars", "corner": "corners"}


class Relation(StrEnum):
    """Where the first thing is, seen from the second, by the larger of the two cell offsets."""

    LEFT = "left of"
    RIGHT = "right of"
    ABOVE = "above"
    BELOW = "below"

    def holds(self, first: Thing, second: Thing) -> bool:
        """No relation holds on a diagonal, where both offsets are equal."""
        down, right = first.row - second.row, first.column - second.column
        along, across = {
            Relation.LEFT: (-right, down),
            Relation.RIGHT: (right, down),
            Relation.ABOVE: (-down, right),
            Relation.BELOW: (down, right),
        }[self]
        return along > abs(across)


_MIRRORED = {Relation.RIGHT: Relation.LEFT, Relation.BELOW: Relation.ABOVE}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A kind of thing and how many of it; shape and colour are indexes into the World's."""

    shape: int
    colour: int | None  # None: any colour
    count: int

    def matches(self, thing: Thing) -> bool:
        return thing.shape == self.shape and self.colour in (None, thing.colour)


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    family: Family
    text: str
    wanted: tuple[Wanted, ...]
    relation: Relation | None = None  # of the first wanted thing to the second

    @property
    def meaning(self) -> Hashable:
        """Equal for two prompts of a family that are true of the same pictures, such as "A above B", "B below A"."""
        if self.relation is None:
            return frozenset(self.wanted)
        mirrored = _MIRRORED.get(self.relation)
        return (mirrored, self.wanted[::-1]) if mirrored else (self.relation, self.wanted)


@lru_cache(maxsize=8)
def all_prompts(world: World) -> tuple[ImagePrompt, ...]:
    """Every prompt of the grammar, in a fixed order: 717 in the default world."""
    return tuple(_prompts(world))


def _prompts(world: World) -> Iterator[ImagePrompt]:
    shapes = [Wanted(shape, None, 1) for shape in range(len(world.shapes))]
    kinds = [Wanted(s, c, 1) for s, c in product(range(len(world.shapes)), range(len(world.colours)))]
    for wanted in shapes:
        yield ImagePrompt(Family.SINGLE, phrase(world, wanted), (wanted,))
    for pair in permutations(shapes, 2):
        yield ImagePrompt(Family.TWO, _joined(world, pair, "and"), pair)
    for kind, count in product(kinds, (2, 3, 4)):
        wanted = Wanted(kind.shape, kind.colour, count)
        yield ImagePrompt(Family.COUNTING, phrase(world, wanted), (wanted,))
    for wanted in kinds:
        yield ImagePrompt(Family.COLOURS, phrase(world, wanted), (wanted,))
    for pair, relation in product(permutations(kinds, 2), Relation):
        yield ImagePrompt(Family.POSITION, _joined(world, pair, relation), pair, relation)
    for pair in permutations(kinds, 2):
        yield ImagePrompt(Family.ATTRIBUTION, _joined(world, pair, "and"), pair)


def phrase(world: World, wanted: Wanted) -> str:
    """ "a ring", "three green crosses"."""
    shape = world.shapes[wanted.shape]
    colour = () if wanted.colour is None else (world.colours[wanted.colour],)
    return " ".join((NUMERALS[wanted.count], *colour, shape if wanted.count == 1 else PLURALS[shape]))


def _joined(world: World, pair: tuple[Wanted, ...], link: str) -> str:
    return f" {link} ".join(phrase(world, wanted) for wanted in pair)


def words(world: World) -> tuple[str, ...]:
    """The whole vocabulary of the grammar, in the order of first use."""
    return tuple(dict.fromkeys(word for prompt in all_prompts(world) for word in prompt.text.split()))


def split_prompts(
    world: World, *, held_out_share: float = 0.2, seed: int = 0
) -> tuple[tuple[ImagePrompt, ...], tuple[ImagePrompt, ...]]:
    """(train, held out). A share of the meanings of HELD_OUT_FAMILIES is held out, in all their wordings.

    So "A above B" never trains the held-out "B below A". Every word occurs in training: counts, relations and pairs
    are held out as combinations.
    """
    if not 0 <= held_out_share < 1:
        raise ValueError(f"held_out_share {held_out_share}: it is a share of the prompts, from 0 to below 1")
    generator = torch.Generator().manual_seed(seed)
    held_out: set[tuple[Family, Hashable]] = set()
    for family in HELD_OUT_FAMILIES:
        meanings = list(dict.fromkeys((p.family, p.meaning) for p in all_prompts(world) if p.family is family))
        chosen = torch.randperm(len(meanings), generator=generator)[: round(held_out_share * len(meanings))]
        held_out.update(meanings[i] for i in chosen.tolist())
    is_held_out = [(p.family, p.meaning) in held_out for p in all_prompts(world)]
    sides = tuple(zip(all_prompts(world), is_held_out, strict=True))
    return tuple(p for p, is_out in sides if not is_out), tuple(p for p, is_out in sides if is_out)


@lru_cache(maxsize=8)
def _by_text(world: World) -> dict[str, ImagePrompt]:
    return {prompt.text: prompt for prompt in all_prompts(world)}


def prompt_of(world: World, text: str) -> ImagePrompt:
    """The prompt with this text."""
    known = _by_text(world)
    if text not in known:
        nearest = get_close_matches(text, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"{text!r} is no prompt of this world; the nearest is {nearest!r}")
    return known[text]


def draw_scene(prompt: ImagePrompt, world: World, generator: torch.Generator) -> Scene:
    """What the prompt asks for and nothing else; free colours and cells are drawn uniformly."""
    kinds = [wanted for wanted in prompt.wanted for _ in range(wanted.count)]
    colours = torch.randint(len(world.colours), (len(kinds),), generator=generator).tolist()
    cells = list(product(range(world.n_cells), repeat=2))
    while True:  # a relation holds for 1 in 4 of the pairs of cells, or a little less
        order = torch.randperm(len(cells), generator=generator)[: len(kinds)].tolist()
        things = tuple(
            Thing(kind.shape, colour if kind.colour is None else kind.colour, *cells[cell])
            for kind, colour, cell in zip(kinds, colours, order, strict=True)
        )
        if prompt.relation is None or prompt.relation.holds(*things):
            return things
