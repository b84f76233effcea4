"""Credits as one HTML page: each answer coloured once per number, with every number in a table below it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from posttrain.evaluation.credit import AnswerCredits, Panel, TokenCredit, panels_of
from posttrain.evaluation.credit_text import margin_line, number, summary_lines
from posttrain.evaluation.page import fact_table, html_page, paragraph
from posttrain.evaluation.value_html import coloured_token, scale_legend, visible

LEGEND_STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)
SIDES = {1: ("",), 2: ("chosen: ", "rejected: ")}  # by the number of answers in a row
COLUMNS = ("log π", "log π_ref", "implicit", "V", "explicit")


def credit_page(rows: Sequence[Sequence[AnswerCredits]], *, title: str, facts: Sequence[tuple[str, str]]) -> str:
    """The page; a row holds one answer, or the chosen and the rejected answer of a pair. `facts` are shown on top."""
    panels = panels_of([answer for row in rows for answer in row])
    sections = [(f"row-{i}", _heading(row), _row(row, panels)) for i, row in enumerate(rows)]
    return html_page(title, _lead(panels, facts), sections)


def _lead(panels: Sequence[Panel], facts: Sequence[tuple[str, str]]) -> str:
    parts = [
        paragraph(
            "The ground of a token is its number: blue above, orange below. The implicit advantage is "
            "β (log π − log π_ref), the explicit one r + V(s') − V(s) with V = 0 after the end. Tokens that the "
            "policy did not choose are plain. A pointer held over a token shows its numbers; the tables hold all. "
            "Each colouring has its own scale, which all rows share."
        ),
        fact_table(facts),
    ]
    for panel in panels:
        parts += [f"<h3>{escape(panel.title)}, reward units</h3>", _legend(panel)]
    return "\n".join(parts)


def _legend(panel: Panel) -> str:
    numbers = [f"{panel.middle + x * panel.reach:.3g}" for x in LEGEND_STEPS]
    label = f"Colour scale of the {panel.title}: orange {numbers[0]}, neutral {numbers[2]}, blue {numbers[-1]}"
    return scale_legend((f"≤ {numbers[0]}", *numbers[1:-1], f"≥ {numbers[-1]}"), label)


def _heading(row: Sequence[AnswerCredits]) -> str:
    return row[0].where if len(row) == 1 else row[0].where.removesuffix(", chosen")


def _row(row: Sequence[AnswerCredits], panels: Sequence[Panel]) -> str:
    """Sums, then every colouring of every answer, those of one pair side by side, then the tables."""
    parts = [paragraph(margin_line(*row))] if len(row) == 2 else []
    for answer in row:
        parts += [paragraph(answer.where)] if len(row) == 2 else []
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in summary_lines(answer)) + "</ul>")
    parts.append('<div class="solutions">')
    for panel in panels:
        for side, answer in zip(SIDES[len(row)], row, strict=True):
            parts.append(f"<article><h3>{side}{escape(panel.title)}</h3>\n{_coloured(answer, panel)}</article>")
    return "\n".join((*parts, "</div>", *map(_table, row)))


def _coloured(answer: AnswerCredits, panel: Panel) -> str:
    credits = {credit.index: credit for credit in answer.credits}
    parts = []
    for index, token in enumerate(answer.tokens):
        credit = credits.get(index)
        position = None if credit is None else panel.position(credit)
        if credit is None or position is None:
            parts.append(f"<i>{visible(token)}</i>")
        else:
            parts.append(coloured_token(token, position, _told(credit)))
        parts.append("\n" * token.count("\n"))
    label = escape(f"{answer.where}, coloured by {panel.title}", quote=True)
    return f'<pre class="solution" tabindex="0" role="group" aria-label="{label}">{"".join(parts)}</pre>'


def _numbers(credit: TokenCredit) -> tuple[str, ...]:
    """One text for each of COLUMNS."""
    return (
        f"{credit.logp:.5f}",
        f"{credit.ref_logp:.5f}",
        f"{credit.implicit:+.5f}",
        number(credit.value, ".5f"),
        number(credit.explicit, "+.5f"),
    )


def _told(credit: TokenCredit) -> str:
    return ", ".join(f"{name} {x}" for name, x in zip(COLUMNS, _numbers(credit), strict=True) if x != "-")


def _table(answer: AnswerCredits) -> str:
    has_values = any(credit.value is not None for credit in answer.credits)
    n_columns = len(COLUMNS) if has_values else 3
    head = "".join(f'<th scope="col">{name}</th>' for name in ("token", *COLUMNS[:n_columns]))
    body = "\n".join(
        f'<tr><th scope="row">{c.index} <code>{visible(answer.tokens[c.index])}</code></th>'
        + "".join(f"<td>{x}</td>" for x in _numbers(c)[:n_columns])
        + "</tr>"
        for c in answer.credits
    )
    sums = ("", "", f"{answer.implicit_return:+.5f}", "", number(answer.explicit_return(), "+.5f"))[:n_columns]
    foot = '<tr><th scope="row">sum</th>' + "".join(f"<td>{x}</td>" for x in sums) + "</tr>"
    return (
        f"<details><summary>The numbers of {escape(answer.where)}</summary>\n"
        '<div class="scroll"><table>\n<caption>Log-probabilities in nats, the rest in reward units</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n{foot}\n</tbody></table></div>\n</details>"
    )
