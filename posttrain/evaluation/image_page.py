"""Generated pictures as one HTML page: prompt, picture, checks, and what each token was worth, in generation order."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from html import escape

from posttrain.evaluation.page import fact_table, html_page, paragraph
from posttrain.vision.image_records import ImageRecord
from posttrain.vision.prompts import Family

SHOWN_PX = 144  # of a picture's longer side, at least
STRIP_WIDTH, ROW_HEIGHT, LABEL_WIDTH = 288, 34, 24  # of the bars, in SVG units
MAX_NUMBERED = 16  # tokens whose ids fit under their bars

_STYLES = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
.pictures article { border: 1px solid var(--line); border-radius: 6px; padding: .8rem; background: var(--band); }
.pictures h4 { margin: 0 0 .5rem; font-size: .9rem; font-weight: 500; }
.pictures .graded { display: flex; gap: .9rem; align-items: flex-start; }
.pictures img { image-rendering: pixelated; border: 1px solid var(--line); flex: none; }
.pictures ul { margin: 0; padding: 0; list-style: none; font-size: .9rem; line-height: 1.45; }
.pictures svg { display: block; width: 100%; height: auto; margin-top: .5rem; }
.pictures svg text { fill: var(--soft); font-size: 8.5px; font-family: inherit; }
.pictures svg line { stroke: var(--soft); stroke-width: .6; }
.pictures { --high: #0072b2; --low: #c25400; --value: #5a5a5a; }
@media (prefers-color-scheme: dark) { .pictures { --high: #56b4e9; --low: #e69f00; --value: #a9adb3; } }
.bar-high { fill: var(--high); } .bar-low { fill: var(--low); } .bar-value { fill: var(--value); }
.pictures .failed { font-weight: 600; }
.counts td { white-space: nowrap; }
"""


def image_page(records: Sequence[ImageRecord], *, title: str, facts: Sequence[tuple[str, str]]) -> str:
    """The page: a table of shares by method and family, then every family's prompts, each with its pictures in a grid.

    Pictures of a prompt are in the order of the records. `facts` are shown on top. Bars share one scale on the page.
    """
    if not records:
        raise ValueError("no image records: the page has nothing to show; was the file written by an ended run?")
    scale = _Scale(records)
    sections = [
        (family.value, family.value.capitalize(), _family([r for r in records if r.family is family], scale))
        for family in Family
        if any(record.family is family for record in records)
    ]
    return html_page(title, _lead(records, scale, facts), sections, styles=_STYLES)


class _Scale:
    """The largest numbers of a page, which fill the height of their row."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        values = [x for record in records for x in record.values or ()]
        advantages = [x for record in records for x in record.advantages or ()]
        self.value = max(map(abs, values), default=0.0) or 1.0
        self.advantage = max(map(abs, advantages), default=0.0) or 1.0
        self.has_negative_value = min(values, default=0.0) < 0


def _lead(records: Sequence[ImageRecord], scale: _Scale, facts: Sequence[tuple[str, str]]) -> str:
    parts = [fact_table(facts), _shares(records)]
    if any(record.values or record.advantages for record in records):
        parts.append(
            paragraph(
                "Under a picture stand its tokens in the order of generation. V, grey, is the value of the state in "
                "which the token is chosen; A is its advantage, blue up and orange down. A full bar is "
                f"|V| = {scale.value:.3g} and |A| = {scale.advantage:.3g}. A pointer over a bar shows its number."
            )
        )
    return "\n".join(parts)


def _shares(records: Sequence[ImageRecord]) -> str:
    """Pictures that pass all checks, of all, by method and family."""
    strict: dict[tuple[str, Family], list[float]] = defaultdict(list)
    for record in records:
        strict[record.method, record.family].append(record.grade.strict)
    families = [family for family in Family if any(family is shown for _, shown in strict)]
    head = "".join(f'<th scope="col">{family.value}</th>' for family in families)
    rows = []
    for method in dict.fromkeys(record.method for record in records):
        cells = (strict.get((method, family), []) for family in families)
        counts = "".join(f"<td>{sum(cell):.0f} of {len(cell)}</td>" if cell else "<td>-</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(method)}</th>{counts}</tr>')
    return (
        '<div class="scroll"><table class="counts">\n<caption>Pictures on this page that pass every check</caption>\n'
        f'<thead><tr><th scope="col">method</th>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}\n</tbody></table></div>"
    )


def _family(records: Sequence[ImageRecord], scale: _Scale) -> str:
    by_prompt: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_prompt[record.prompt].append(record)
    parts = []
    for prompt, members in by_prompt.items():
        held_out = " (held out)" if members[0].is_held_out else ""
        cards = "\n".join(_card(record, scale) for record in members)
        parts.append(f'<h3>{escape(prompt)}{held_out}</h3>\n<div class="pictures">\n{cards}\n</div>')
    return "\n".join(parts)


def _card(record: ImageRecord, scale: _Scale) -> str:
    checks = "".join(
        f"<li>✓ passed: {escape(check.name)}</li>"
        if check.is_passed
        else f'<li class="failed">✗ failed: {escape(check.name)}</li>'
        for check in record.grade.checks
    )
    return (
        f"<article><h4>{escape(record.method)}, seed {record.seed}</h4>\n"
        f'<div class="graded">{_picture(record)}<ul>{checks}</ul></div>\n{_strip(record, scale)}</article>'
    )


def _picture(record: ImageRecord) -> str:
    png, width, height = _enlarged(record.png)
    data = base64.b64encode(png).decode("ascii")
    alt = escape(f"Picture that {record.method} drew for: {record.prompt}", quote=True)
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{alt}">'


def _enlarged(png: bytes) -> tuple[bytes, int, int]:
    """The PNG with each pixel a square of pixels, its width and its height."""
    from PIL import Image

    small = Image.open(io.BytesIO(png))
    times = max(1, -(-SHOWN_PX // max(small.size)))
    large = small.resize((small.width * times, small.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    large.save(file, "PNG")
    return file.getvalue(), large.width, large.height


def _strip(record: ImageRecord, scale: _Scale) -> str:
    """Bars of V and A by token; nothing where a record has neither."""
    if record.values is None and record.advantages is None:
        return ""
    step = (STRIP_WIDTH - LABEL_WIDTH) / len(record.tokens)
    parts, top = [], 0.0
    rows = (
        ("V", record.values, scale.value, scale.has_negative_value),
        ("A", record.advantages, scale.advantage, True),
    )
    for name, numbers, full, is_signed in rows:
        if numbers is not None:
            parts.append(_bar_row(name, numbers, full, is_signed=is_signed, top=top, step=step))
            top += ROW_HEIGHT + 6
    if len(record.tokens) <= MAX_NUMBERED:
        parts += [
            f'<text x="{LABEL_WIDTH + (k + 0.5) * step:.1f}" y="{top + 6:.1f}" text-anchor="middle">{token}</text>'
            for k, token in enumerate(record.tokens)
        ]
        parts.append(f'<text x="0" y="{top + 6:.1f}">code</text>')
        top += 10
    label = escape(_spoken(record), quote=True)
    return f'<svg viewBox="0 0 {STRIP_WIDTH} {top:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _bar_row(name: str, numbers: Sequence[float], full: float, *, is_signed: bool, top: float, step: float) -> str:
    """A zero line with one bar per token: in the middle of the row if numbers may be negative, else at its foot."""
    reach = ROW_HEIGHT / 2 if is_signed else ROW_HEIGHT
    zero = top + reach
    parts = [f'<text x="0" y="{zero + 3 if is_signed else zero:.1f}">{name}</text>']
    for k, x in enumerate(numbers):
        height = reach * abs(x) / full
        kind = "value" if name == "V" else "high" if x >= 0 else "low"
        parts.append(
            f'<rect class="bar-{kind}" x="{LABEL_WIDTH + (k + 0.12) * step:.2f}" width="{0.76 * step:.2f}" '
            f'y="{zero - height if x >= 0 else zero:.2f}" height="{height:.2f}">'
            f"<title>token {k + 1}: {name} = {x:.4f}</title></rect>"
        )
    parts.append(f'<line x1="{LABEL_WIDTH}" x2="{STRIP_WIDTH}" y1="{zero:.1f}" y2="{zero:.1f}"/>')
    return "".join(parts)


def _spoken(record: ImageRecord) -> str:
    """The numbers of the bars, for those who do not see them."""
    told = []
    if record.values is not None:
        told.append("V by token: " + ", ".join(f"{x:.2f}" for x in record.values))
    if record.advantages is not None:
        told.append("A by token: " + ", ".join(f"{x:+.2f}" for x in record.advantages))
    return "; ".join(told)
