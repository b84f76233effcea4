"""Many generated pictures as one PNG, each with its prompt and whether all checks pass."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from posttrain.evaluation.figures import INK, figure
from posttrain.vision.image_records import ImageRecord, image_of

CELL_INCHES = (1.7, 2.1)  # width, height
CAPTION_WIDTH = 21  # characters per line
RIGHT, WRONG = "#0072B2", "#C25400"


def contact_sheet(path: Path, records: Sequence[ImageRecord], *, n_columns: int) -> Path:
    """Draws the records in their order, row by row, and returns `path`.

    The frame is blue with a ✓ if every check is passed, orange with the share of passed checks if not.
    """
    if not records:
        raise ValueError("no image records: a contact sheet needs at least one picture")
    n_rows = -(-len(records) // n_columns)
    width, height = CELL_INCHES
    with figure(path, n_rows, n_columns, width=width * n_columns, height=height * n_rows) as grid:
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, record in zip(grid.flat, records, strict=False):
            axes.set_axis_on()
            axes.grid(False)
            axes.set(xticks=[], yticks=[])
            axes.imshow((image_of(record.png).permute(1, 2, 0) + 1).numpy() / 2, interpolation="nearest")
            colour = RIGHT if record.grade.strict else WRONG
            for spine in axes.spines.values():
                spine.set(visible=True, color=colour, linewidth=2.5)
            axes.set_title(textwrap.fill(record.prompt, CAPTION_WIDTH), fontsize=9, color=INK)
            axes.set_xlabel(_mark(record), fontsize=9, color=colour)
    return path


def _mark(record: ImageRecord) -> str:
    n_passed = sum(check.is_passed for check in record.grade.checks)
    return f"{'✓' if record.grade.strict else '✗'} {record.method}, {n_passed} of {len(record.grade.checks)}"
