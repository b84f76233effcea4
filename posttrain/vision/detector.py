"""Reads the things back from a picture: an exact detector of rendered scenes, with nothing learned.

Every pixel becomes its nearest palette colour. A cell holds the shape and colour whose template has the largest
intersection over union with the pixels of that colour, if that is at least MIN_IOU:

    IoU = |M and T| / |M or T|,   M the pixels of the colour in the template's box and a rim of one gap around it

With the rim a filled area is no square. A thing may stand SHIFT_PX beside its place. In the default world no single
wrong pixel changes what is read, and no set of pixels passes for two shapes (see `templates`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain.vision.world import Scene, Thing, World, palette, templates

MIN_IOU = 0.75
SHIFT_PX = 1
MAX_CLUTTER = 1 / 3  # of an empty cell's pixels


def detect(world: World, images: Tensor) -> Tensor:
    """[B, S, C, n_cells, n_cells] bool from images [B, 3, H, W]: what is where; at most one thing per cell."""
    _check(world, images)
    iou = _best_iou(world, _colour_masks(world, images.float()))
    scores = iou.flatten(1, 2)  # [B, S * C, n_cells, n_cells]
    best, kind = scores.max(1, keepdim=True)
    found = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, kind, best >= MIN_IOU)
    return found.view(iou.shape)


def find_clutter(world: World, images: Tensor, found: Tensor) -> Tensor:
    """[B, n_cells, n_cells] bool: cells with colour in more than MAX_CLUTTER of their pixels and no thing `found`.

    Noise, and a thing too smeared to be read. Without this a noisy picture in which chance draws one ring would be
    "a ring" and nothing else.
    """
    is_coloured = _colour_masks(world, images.float()).sum(1)
    return (F.avg_pool2d(is_coloured, world.cell_px) > MAX_CLUTTER) & ~found.any((1, 2))


def scenes_of(found: Tensor) -> list[Scene]:
    """The things of each image that `detect` found."""
    scenes: list[list[Thing]] = [[] for _ in found]
    for image, *thing in found.nonzero().tolist():
        scenes[image].append(Thing(*thing))
    return [tuple(scene) for scene in scenes]


def _check(world: World, images: Tensor) -> None:
    size = (3, world.image_px, world.image_px)
    if images.ndim != 4 or tuple(images.shape[1:]) != size:
        raise ValueError(f"images are {tuple(images.shape)}, this world's are [B, {', '.join(map(str, size))}]")
    if not images.isfinite().all():
        raise ValueError("the images hold NaN or infinite pixels: did the decoder diverge?")


def _colour_masks(world: World, images: Tensor) -> Tensor:
    """[B, C, H, W] float, 1 where a colour is the nearest of the palette; a tie with black is black."""
    colours = palette(world).to(images.device)
    # |x − p|² without |x|², which is the same for all p
    distance = colours.square().sum(1).view(-1, 1, 1) - 2 * torch.einsum("pc,bchw->bphw", colours, images)
    return F.one_hot(distance.argmin(1), len(colours)).movedim(-1, 1)[:, 1:].float()


def _best_iou(world: World, masks: Tensor) -> Tensor:
    """[B, S, C, n_cells, n_cells]: the best IoU of a cell over the places that its thing may have."""
    n_images, n_colours = masks.shape[:2]
    shapes = templates(world).to(masks.device)
    rim = world.gap_px
    # So padded, the first box of the convolution is that of the first cell's thing shifted up and left.
    before, after = rim + SHIFT_PX - world.inset_px, rim + SHIFT_PX
    padded = F.pad(masks.flatten(0, 1).unsqueeze(1), (before, after, before, after))
    overlap = F.conv2d(padded, F.pad(shapes, (rim, rim, rim, rim)).unsqueeze(1))
    box = torch.ones(1, 1, world.shape_px + 2 * rim, world.shape_px + 2 * rim, device=masks.device)
    area = F.conv2d(padded, box)
    iou = overlap / (area + shapes.sum((1, 2)).view(1, -1, 1, 1) - overlap)
    best = F.max_pool2d(iou, 2 * SHIFT_PX + 1, stride=world.cell_px)[..., : world.n_cells, : world.n_cells]
    return best.unflatten(0, (n_images, n_colours)).transpose(1, 2)
