"""A world of small pictures: a grid of cells on black, each empty or holding one shape in one colour.

Axes: B images, S shapes, C colours, H = W = `World.image_px`. Pixels are RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

SHAPES = ("square", "ring", "cross", "bar", "corner")
BLACK = (-1.0, -1.0, -1.0)
COLOURS = {  # far apart from one another and from black, so that the nearest one is right in spite of noise
    "red": (1.0, -1.0, -1.0),
    "green": (-1.0, 1.0, -1.0),
    "blue": (-1.0, -1.0, 1.0),
    "yellow": (1.0, 1.0, -1.0),
    "white": (1.0, 1.0, 1.0),
    "magenta": (1.0, -1.0, 1.0),
    "cyan": (-1.0, 1.0, 1.0),
    "pink": (1.0, 0.0, 0.0),
}
MIN_CELLS = 2  # a relation needs a neighbour and "four" needs four cells
MIN_CELL_PX = 4  # a shape needs 3 px and a gap


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene; its shape and colour are indexes into the World's."""

    shape: int
    colour: int
    row: int  # cell, 0 at the top
    column: int  # cell, 0 at the left


Scene = tuple[Thing, ...]


@dataclass(frozen=True)
class World:
    """All sizes of the pictures. The default is the world of the CPU study: 12x12 px, 9 cells, 12 kinds of things."""

    n_cells: int = 3  # per side
    cell_px: int = 4
    shapes: tuple[str, ...] = ("square", "ring", "cross")
    colours: tuple[str, ...] = ("red", "green", "blue", "yellow")

    def __post_init__(self) -> None:
        if self.n_cells < MIN_CELLS or self.cell_px < MIN_CELL_PX:
            raise ValueError(
                f"n_cells {self.n_cells} and cell_px {self.cell_px}: a world needs n_cells >= {MIN_CELLS} "
                f"and cell_px >= {MIN_CELL_PX}"
            )
        for field, chosen, known in (("shapes", self.shapes, SHAPES), ("colours", self.colours, COLOURS)):
            unknown = [name for name in chosen if name not in known]
            if unknown or not chosen or len(set(chosen)) < len(chosen):
                raise ValueError(f"{field} {chosen}: name each at most once, at least one, out of {tuple(known)}")

    @property
    def image_px(self) -> int:
        return self.n_cells * self.cell_px

    @property
    def gap_px(self) -> int:
        """Black pixels between the shapes of two neighbouring cells."""
        return max(1, self.cell_px // 4)

    @property
    def shape_px(self) -> int:
        return self.cell_px - self.gap_px

    @property
    def inset_px(self) -> int:
        """From the top and the left of a cell to its shape."""
        return self.gap_px // 2

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON; `from_dict` reads it back."""
        return asdict(self) | {"shapes": list(self.shapes), "colours": list(self.colours)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> World:
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise ValueError(f"a world with the fields {sorted(data)}: it needs exactly {sorted(names)}")
        return cls(int(data["n_cells"]), int(data["cell_px"]), tuple(data["shapes"]), tuple(data["colours"]))


def templates(world: World) -> Tensor:
    """[S, shape_px, shape_px] float32, 1 where a shape has colour.

    At 3 px:  square ###  ring .#.  cross #.#  bar ...  corner #..
                     ###       #.#        .#.      ###         #..
                     ###       .#.        #.#      ...         ###
    The ring is the rasterised circle and the cross is diagonal. So the IoU of two shapes is at most 5/9 (square with
    cross or corner), and no single wrong pixel turns one into another. An 8-px ring and a square would differ by one
    pixel, IoU 8/9.
    """
    centre = torch.linspace(-1, 1, world.shape_px)
    v, u = torch.meshgrid(centre, centre, indexing="ij")
    radius = (u.square() + v.square()).sqrt()
    drawn = {
        "square": torch.ones_like(u, dtype=torch.bool),
        "ring": (radius > 0.75) & (radius < 1.15),
        "cross": (u.abs() - v.abs()).abs() < 0.3,
        "bar": v.abs() < 0.35,
        "corner": (u < -0.45) | (v > 0.45),
    }
    return torch.stack([drawn[name] for name in world.shapes]).float()


def palette(world: World) -> Tensor:
    """[1 + C, 3] float32: black, then the world's colours."""
    return torch.tensor([BLACK, *(COLOURS[name] for name in world.colours)])


def render(world: World, scenes: Sequence[Scene]) -> Tensor:
    """[B, 3, H, W] float32 in [-1, 1], one picture per scene."""
    shapes, colours = templates(world).bool(), palette(world)
    images = colours[0].view(1, 3, 1, 1).repeat(len(scenes), 1, world.image_px, world.image_px)
    for image, scene in zip(images, scenes, strict=True):
        _check(world, scene)
        for thing in scene:
            top = thing.row * world.cell_px + world.inset_px
            left = thing.column * world.cell_px + world.inset_px
            window = image[:, top : top + world.shape_px, left : left + world.shape_px]
            window[:, shapes[thing.shape]] = colours[1 + thing.colour].unsqueeze(1)
    return images


def _check(world: World, scene: Scene) -> None:
    cells = {(thing.row, thing.column) for thing in scene}
    if len(cells) < len(scene):
        raise ValueError(f"{scene}: a cell holds at most one thing")
    if not all(0 <= x < world.n_cells for cell in cells for x in cell):
        raise ValueError(f"{scene}: rows and columns of this world are 0 to {world.n_cells - 1}")
