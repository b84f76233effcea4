"""The report of a study of `posttrain control`: its card, its tables and its pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from posttrain.evaluation.page import Section, fact_table, html_page, paragraph
from posttrain.evaluation.study_figures import beer, hypergrid, intrl, intrl_tables, model_based, molecules, strings
from posttrain.evaluation.study_files import StudyRun, read_study
from posttrain.evaluation.tables import Table
from posttrain.provenance import read_run_cards


@dataclass(frozen=True, slots=True)
class Shown:
    """What the report has of a study."""

    draw: Callable[[StudyRun, Path], tuple[Section, ...]]  # writes its PNGs into the folder
    tables: Callable[[StudyRun], tuple[tuple[str, Table], ...]]  # titles and tables of the main results


SHOWN: dict[str, Shown] = {  # by the name of the study
    "beer": Shown(beer.draw, beer.result_tables),
    "beer-grid": Shown(beer.draw_grid, beer.result_tables),
    "hypergrid": Shown(hypergrid.draw, hypergrid.result_tables),
    "beer-value-head": Shown(beer.draw_value_head, beer.value_head_tables),
    "intrl": Shown(intrl.draw, intrl_tables.result_tables),
    "molecules": Shown(molecules.draw, molecules.result_tables),
    "strings": Shown(strings.draw, strings.result_tables),
    "model-theorem": Shown(model_based.draw_theorem, model_based.theorem_tables),
    "panflute": Shown(model_based.draw_panflute, model_based.panflute_tables),
    "worlds-online": Shown(model_based.draw_online, model_based.online_tables),
    "imagined-values": Shown(model_based.draw_imagined, model_based.imagined_tables),
}
FACTS = ("command", "started", "device", "git", "packages", "python")


def write_study_report(folder: Path, output: Path) -> Path:
    """Write index.html, its PNGs and the main tables as results.md; returns the path of index.html.

    Raises FileNotFoundError without a study, ValueError for a study that nothing is drawn of, ImportError without
    matplotlib.
    """
    run = read_study(folder)
    if run.name not in SHOWN:
        raise ValueError(f"nothing is drawn of a study called {run.name!r}; there are {', '.join(SHOWN)}")
    output.mkdir(parents=True, exist_ok=True)
    parts = (("run", "What was run", _facts(folder)), *SHOWN[run.name].draw(run, output))
    lead = paragraph(f"{len(run.rows)} results, methods: {', '.join(run.methods()) or 'none yet'}.")
    page = output / "index.html"
    page.write_text(html_page(f"Study: {run.name}", lead, parts), encoding="utf-8")
    (output / "results.md").write_text(markdown_tables(run), encoding="utf-8")
    return page


def markdown_tables(run: StudyRun) -> str:
    """The main tables under their titles, in Markdown."""
    return "\n".join(f"**{title}**\n\n{table.to_markdown()}" for title, table in SHOWN[run.name].tables(run))


def _facts(folder: Path) -> str:
    *earlier, card = read_run_cards(folder)
    facts = [(name, _spoken(card[name])) for name in FACTS if name in card]
    facts += [
        (f"earlier start, {start['started']}", f"{_spoken(start['command'])}; {_spoken(start['git'])}")
        for start in earlier
    ]
    return fact_table([*facts, *((f"config.{name}", _spoken(value)) for name, value in card["config"].items())])


def _spoken(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return str(value)
