"""`write_report`: one self-contained HTML page, its PNGs and the tables as Markdown, from the files of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from posttrain.evaluation import sections
from posttrain.evaluation.by_tag import accuracy_by_tag, tag_table
from posttrain.evaluation.comparison import summarise
from posttrain.evaluation.games_by_type import games_by_type
from posttrain.evaluation.page import html_page
from posttrain.evaluation.run_folder import load_run
from posttrain.evaluation.study_files import STUDY
from posttrain.evaluation.study_report import write_study_report
from posttrain.evaluation.tables import (
    START_METHOD,
    comparison_table,
    largest_budgets,
    paired_comparisons,
    summary_table,
)
from posttrain.evaluation.tag_section import tag_section


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """What to report on and where to put it."""

    run: Path = field(
        metadata={
            "help": "A run folder, a study with seed-0, seed-1, ..., or one of `posttrain control`.",
            "positional": True,
        }
    )
    output: Path | None = field(default=None, metadata={"help": "Where the page goes; by default RUN/report."})
    start_method: str = field(default=START_METHOD, metadata={"help": "The method that differences are taken to."})


def report(config: ReportConfig) -> None:
    """The command: write the report, print its tables and where the page is."""
    if (config.run / STUDY).exists():
        page = write_study_report(config.run, config.output or config.run / "report")
    else:
        page = write_report(config)
    print((page.parent / "results.md").read_text(encoding="utf-8"))
    print(f"wrote {page}")


def write_report(config: ReportConfig) -> Path:
    """Write index.html, results.md and the PNGs; returns the path of index.html.

    Parts whose files were not found are left out with a line naming the file.  Raises FileNotFoundError without a run
    folder, RecordError or RunFolderError (file:line) on a broken file, ImportError without matplotlib.
    """
    run = load_run(config.run)
    output = config.output or config.run / "report"
    output.mkdir(parents=True, exist_ok=True)
    summaries = tuple(summarise(records) for records in run.answers.values())
    summary = summary_table(run.answers, start_method=config.start_method)
    comparisons, unpaired = paired_comparisons(run.answers)
    paired = comparison_table(comparisons)
    largest = {(summary.method, summary.budget) for summary in largest_budgets(summaries)}
    by_tag = accuracy_by_tag({method: records for method, records in run.answers.items() if method in largest})
    by_tag |= games_by_type(run.games)
    parts = (
        ("run", "What was run", sections.run_section(run)),
        ("summary", "Accuracy by method", sections.summary_section(run, summaries, summary, output)),
        ("tags", "Accuracy by kind of problem", tag_section(by_tag, output)),
        ("paired", "Paired comparisons", sections.paired_section(paired, unpaired)),
        ("compute", "Accuracy against compute", sections.compute_section(run, summaries, output)),
        ("curves", "Learning curves", sections.curves_section(run, output)),
        ("calibration", "Does the value predict success?", sections.calibration_section(run, output)),
        ("solutions", "Value along solutions", sections.solutions_section(run, output)),
    )
    title = f"Run report: {config.run.resolve().name}"
    page = output / "index.html"
    page.write_text(html_page(title, sections.lead(summaries, config.start_method), parts), encoding="utf-8")
    of_tags = (tag_table(tag, values) for tag, values in by_tag.items())
    tables = [table.to_markdown() for table in (summary, paired, *of_tags) if table.rows]
    (output / "results.md").write_text("\n".join(tables) or "No answers on file.\n", encoding="utf-8")
    return page
