"""The report's part on kinds of problems: a table and a picture for each tag that the records have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from posttrain.evaluation import plots
from posttrain.evaluation.by_tag import TagValue, tag_table
from posttrain.evaluation.page import absent, paragraph, picture
from posttrain.evaluation.tables import percent_with_interval

_INTRO = (
    "Each method at its largest budget. Brackets and bars are 95 % intervals: Wilson's where each problem was "
    "answered once, else a bootstrap over problems. Groups are small and many: some differ by chance, and no interval "
    "is corrected for their number."
)


def tag_section(by_tag: Mapping[str, Sequence[TagValue]], output: Path) -> str:
    """Accuracy by each tag, such as subject and level, as HTML; the pictures are written below `output`."""
    if not by_tag:
        return absent("The records name no subject, level or other kind of their problems.")
    return "\n".join((paragraph(_INTRO), *(_one_tag(tag, values, output) for tag, values in by_tag.items())))


def _one_tag(tag: str, values: Sequence[TagValue], output: Path) -> str:
    name = re.sub(r"\W+", "_", tag)
    png = plots.plot_accuracy_by_tag(tag, values, output / f"accuracy_by_{name}.png")
    spoken = "; ".join(
        f"{value.value}: " + ", ".join(f"{label} {percent_with_interval(at)}" for label, at in value.accuracy.items())
        for value in values
    )
    return "\n".join(
        (
            f"<h3>By {escape(tag)}</h3>",
            tag_table(tag, values).to_html(f"Problems solved by {tag}, % with 95 % intervals."),
            picture(
                png,
                alt=f"Accuracy in per cent by {tag}: {spoken}.",
                caption=f"Problems solved by {tag}; in brackets, how many problems there are.",
            ),
        )
    )
