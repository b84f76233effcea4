"""Pictures are drawn pixel by pixel as their scene says."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from posttrain.vision.world import COLOURS, SHAPES, Thing, World, palette, render, templates

RED_RING_TOP_LEFT = """
.R..........
R.R.........
.R..........
............
............
............
............
............
........Y.Y.
.........Y..
........Y.Y.
............
"""


def draw(world: World, art: str) -> torch.Tensor:
    """[1, 3, H, W] of a drawing with one letter per pixel: a dot is black, a letter the first of its colour's name."""
    colour = {name[0].upper(): COLOURS[name] for name in world.colours} | {".": (-1.0, -1.0, -1.0)}
    rows = [[colour[letter] for letter in line] for line in art.split()]
    return torch.tensor(rows).permute(2, 0, 1)[None]


def test_a_scene_is_drawn_at_its_cells_in_its_colours() -> None:
    world = World()
    ring, cross = world.shapes.index("ring"), world.shapes.index("cross")
    red, yellow = world.colours.index("red"), world.colours.index("yellow")
    image = render(world, [(Thing(ring, red, 0, 0), Thing(cross, yellow, 2, 2))])
    assert image.dtype == torch.float32
    assert_close(image, draw(world, RED_RING_TOP_LEFT), rtol=0, atol=0)


def test_a_gap_of_two_pixels_is_split_around_the_shape() -> None:
    # Cells of 8 px hold shapes of 6 px, one pixel from the top and the left.
    world = World(n_cells=2, cell_px=8)
    image = render(world, [(Thing(0, 2, 1, 0),)])  # a blue square in the lower left cell
    rows, columns = (image[0, 2] > 0).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (9, 14, 1, 6)
    assert len(rows) == 36


def test_each_picture_of_a_batch_holds_its_own_scene_only() -> None:
    world = World()
    scenes = [(Thing(0, 0, 0, 0),), (), (Thing(2, 3, 1, 2), Thing(1, 1, 2, 0))]
    batch = render(world, scenes)
    for image, scene in zip(batch, scenes, strict=True):
        assert_close(image[None], render(world, [scene]), rtol=0, atol=0)
    assert_close(batch[1], torch.full((3, 12, 12), -1.0), rtol=0, atol=0)


@pytest.mark.parametrize("cell_px", range(4, 17))
def test_shapes_are_far_apart_at_every_size(cell_px: int) -> None:
    shapes = templates(World(cell_px=cell_px, shapes=SHAPES)).flatten(1)
    overlap = shapes @ shapes.T
    iou = overlap / (shapes.sum(1)[:, None] + shapes.sum(1) - overlap)
    assert iou.fill_diagonal_(0).max() <= 0.641  # 16/25, square and corner at 5 px; .75 is read as the shape


def test_the_shapes_of_the_default_world_have_an_iou_of_at_most_five_ninths() -> None:
    # 9, 4 and 5 pixels. square-ring 4/9, square-cross 5/9, ring and cross share no pixel
    square, ring, cross = templates(World()).flatten(1)
    assert (square.sum(), ring.sum(), cross.sum()) == (9, 4, 5)
    assert (square @ ring, square @ cross, ring @ cross) == (4, 5, 0)


def test_colours_are_at_least_sqrt_2_apart() -> None:
    distance = torch.cdist(palette(World(colours=tuple(COLOURS))), palette(World(colours=tuple(COLOURS))))
    assert distance.fill_diagonal_(9).min() >= 2**0.5 - 1e-6
    four = palette(World())
    assert torch.cdist(four, four).fill_diagonal_(9).min() == 2  # red and yellow, or any of three and black


def test_a_world_comes_back_from_json() -> None:
    world = World(n_cells=4, cell_px=8, shapes=SHAPES, colours=tuple(COLOURS))
    back = World.from_dict(json.loads(json.dumps(world.to_dict())))
    assert back == world
    assert hash(back) == hash(world)


@pytest.mark.parametrize("change", [{"n_cels": 3}, {"cell_px": None}])
def test_a_world_with_other_fields_is_refused(change: dict[str, int | None]) -> None:
    data = {k: v for k, v in (World().to_dict() | change).items() if v is not None}
    with pytest.raises(ValueError, match="it needs exactly"):
        World.from_dict(data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_cells": 1}, "n_cells >= 2"),
        ({"cell_px": 3}, "cell_px >= 4"),
        ({"shapes": ("square", "star")}, "shapes .*star.* out of"),
        ({"colours": ("red", "red")}, "each at most once"),
        ({"colours": ()}, "at least one"),
    ],
)
def test_a_world_that_cannot_be_drawn_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        World(**fields)


def test_two_things_in_a_cell_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one thing"):
        render(World(), [(Thing(0, 0, 1, 1), Thing(1, 1, 1, 1))])


@pytest.mark.parametrize(("row", "column"), [(3, 0), (0, -1)])
def test_a_thing_outside_the_grid_is_refused(row: int, column: int) -> None:
    with pytest.raises(ValueError, match="are 0 to 2"):
        render(World(), [(Thing(0, 0, row, column),)])
