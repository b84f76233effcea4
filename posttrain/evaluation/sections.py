"""The parts of the report page, each as HTML with the pictures that it wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evaluation import plots
from posttrain.evaluation.budget_curves import EXACT, budget_points
from posttrain.evaluation.calibration import (
    auc_interval,
    brier_score,
    expected_calibration_error,
    reliability_bins,
)
from posttrain.evaluation.comparison import MethodSummary
from posttrain.evaluation.page import absent, fact_table, paragraph, picture
from posttrain.evaluation.run_folder import Run, SolutionValues
from posttrain.evaluation.statistics import wilson_interval
from posttrain.evaluation.tables import (
    NOT_APPLICABLE,
    Table,
    largest_budgets,
    method_label,
    percent_with_interval,
)
from posttrain.evaluation.value_html import coloured_solution, value_legend
from posttrain.schema import Grade

N_BINS = 10
N_SHOWN_PER_GRADE = 2
_FIRST_FACTS = ("command", "commit", "started", "finished", "device", "seed", "seeds", "versions")

_INTERVALS = (
    "Accuracy is the share of problems whose final answer was graded correct. Unparsed answers count as wrong and are "
    "listed apart; cut answers reached the token limit. Brackets are 95 % intervals: Wilson's score interval where "
    "each problem was answered once, else a percentile bootstrap over problems. They say what other problems of the "
    "same kind may give with these trained models."
)
_SEED_INTERVALS = (
    "The interval over seeds is Student's t over one number per seed: what training again with another seed may "
    "give. With few seeds it is wide, and it assumes that seeds differ normally."
)
_PAIRED = (
    "Both methods answered the same problems, so the difference is taken problem by problem. Its interval is a "
    "percentile bootstrap over problems; a problem's answers under all seeds are drawn together. No interval is given "
    "where both solved the same problems: resamples of them do not differ. McNemar's exact test asks whether the "
    "problems that only one method solved are split by a fair coin; its p is given for each seed and is not corrected "
    "for the number of rows."
)
_COMPUTE = (
    "Methods with more samples use more compute than a greedy answer, so compare them along this axis, not only by "
    "height. Tokens include discarded samples and branches, not the calls of the value model."
)
_EXACT = (
    " Lines marked exact, with hollow markers, are expectations over all subsets of the samples on file; pass@n is "
    "what a selector that knows the answer would reach."
)
_CALIBRATION = (
    "Each solution enters once per panel, so its points are independent as far as the problems are. V is trained "
    "towards reward minus beta times the later log-ratios, not towards a success rate: with beta above 0 it may lie "
    "off the diagonal and still rank well. AUC is the chance that a correct solution has a higher V than a wrong one."
)


def lead(summaries: Sequence[MethodSummary], start_method: str) -> str:
    greedy = [s for s in summaries if s.method == start_method]
    if not greedy:
        return paragraph(f"Nothing to compare with: {start_method} has no answers on file.")
    n_seeds = len(greedy[0].by_seed)
    trainings = "one training seed" if n_seeds == 1 else f"{n_seeds} training seeds"
    return paragraph(
        f"{len(summaries)} methods and budgets on {greedy[0].n_problems} problems, {trainings}. "
        f"The start, {start_method}, solves {percent_with_interval(greedy[0].accuracy)} %."
    )


def run_section(run: Run) -> str:
    if not run.info:
        return _not_found(run, "run.json", "settings")
    merged = [dict(_flatten(info)) for info in run.info]
    facts: list[tuple[str, str]] = []
    for name in dict.fromkeys(name for info in merged for name in info):
        texts = [info.get(name, NOT_APPLICABLE) for info in merged]
        facts.append((name, texts[0] if len(set(texts)) == 1 else "; ".join(texts)))
    order = {name: i for i, name in enumerate(_FIRST_FACTS)}
    facts.sort(key=lambda fact: order.get(fact[0].split(".")[0], len(order)))
    return fact_table(facts)


def summary_section(run: Run, summaries: Sequence[MethodSummary], table: Table, output: Path) -> str:
    if not summaries:
        return _not_found(run, "answers.jsonl", "accuracies")
    png = plots.plot_accuracy_by_method(largest_budgets(summaries), output / "accuracy_by_method.png")
    spoken = "; ".join(
        f"{method_label(s.method, s.budget)} {percent_with_interval(s.accuracy)}" for s in largest_budgets(summaries)
    )
    dots = " Dots are single seeds." if any(s.over_seeds for s in summaries) else ""
    return "\n".join(
        (
            table.to_html("All methods and budgets on file."),
            paragraph(_INTERVALS),
            paragraph(_SEED_INTERVALS) if dots else "",
            picture(
                png,
                alt=f"Bar chart of accuracy in per cent: {spoken}.",
                caption=f"Problems solved by each method at its largest budget, with 95 % intervals.{dots}",
            ),
        )
    )


def paired_section(table: Table, unpaired: Sequence[str]) -> str:
    lines = [absent(f"Not compared: {reason}") for reason in unpaired]
    if not table.rows:
        return "\n".join((absent("No two methods answered the same problems."), *lines))
    caption = "Points are percentage points; a − b above 0 means that a is better."
    return "\n".join((table.to_html(caption), paragraph(_PAIRED), *lines))


def compute_section(run: Run, summaries: Sequence[MethodSummary], output: Path) -> str:
    points = budget_points(summaries, run.answers)
    png = plots.plot_accuracy_by_compute(points, output / "accuracy_by_compute.png")
    if png is None:
        return absent("No method on file drew more than one sample per problem.")
    spoken = "; ".join(f"{p.label} with {p.budget} samples {percent_with_interval(p.accuracy)}" for p in points)
    exact = _EXACT if any(p.label.endswith(EXACT) for p in points) else ""
    return picture(
        png,
        alt=f"Accuracy in per cent against samples and tokens per problem: {spoken}.",
        caption=_COMPUTE
        + exact
        + " Points of one budget are drawn side by side to keep their 95 % intervals readable.",
    )


def curves_section(run: Run, output: Path) -> str:
    parts: list[str] = []
    for stage, by_seed in run.curves.items():
        png = plots.plot_learning_curves(stage, by_seed, output / f"learning_{stage}.png")
        if png is None:
            parts.append(
                absent(
                    f"{stage}/metrics.jsonl holds none of the keys that are drawn (loss, value/..., kl, grad_norm)."
                )
            )
            continue
        seeds = f" Lines of one colour are the {len(by_seed)} seeds." if len(by_seed) > 1 else ""
        parts.append(f"<h3>{stage}</h3>")
        parts.append(
            picture(
                png,
                alt=f"Learning curves of {stage}: " + ", ".join(_last_numbers(next(iter(by_seed)))) + ".",
                caption=f"As logged in {stage}/metrics.jsonl; long curves are faint, with a running mean on top."
                + seeds,
            )
        )
    lost = [name for name in run.missing if name.endswith("metrics.jsonl")]
    parts += [absent(f"Not found: {', '.join(lost)}.")] if lost else []
    return "\n".join(parts)


def calibration_section(run: Run, output: Path) -> str:
    solutions = [s for own in run.solutions.values() for s in own if s.step_states()]
    if not solutions:
        return _not_found(run, "values.jsonl", "solutions with line ends")
    is_correct = [s.grade is Grade.CORRECT for s in solutions]
    panels = []
    rows = []
    for name, place in (("after the first line", 0.0), ("half way", 0.5), ("after the last line", 1.0)):
        value = [s.values[_state_at(s.step_states(), place)] for s in solutions]
        bins = reliability_bins(value, is_correct, n_bins=N_BINS)
        panels.append((name, bins, value))
        rows.append((name, *_calibration_cells(value, is_correct), f"{expected_calibration_error(bins):.3f}"))
    header = (
        "read",
        "solutions",
        "correct %, 95 % interval",
        "mean V",
        "AUC, 95 % interval",
        "Brier",
        "calibration error",
    )
    table = Table(header, tuple(rows))
    png = plots.plot_calibration(panels, output / "calibration.png")
    return "\n".join(
        (
            table.to_html(
                f"V at the end of a reasoning line against the final outcome; {N_BINS} bins of equal width."
            ),
            picture(
                png,
                alt="Reliability diagrams: " + "; ".join(", ".join(row) for row in rows) + ".",
                caption="Mean V of a bin against the share of its solutions that ended correct, with Wilson "
                "intervals; below, how often each V occurred. The dashed line is V = success rate.",
            ),
            paragraph(_CALIBRATION),
        )
    )


def _state_at(states: Sequence[int], place: float) -> int:
    return states[int(place * (len(states) - 1))]


def _calibration_cells(value: Sequence[float], is_correct: Sequence[bool]) -> tuple[str, ...]:
    n_correct = sum(is_correct)
    area = NOT_APPLICABLE
    if 0 < n_correct < len(is_correct):
        interval = auc_interval(value, is_correct, rng=np.random.default_rng(0))
        area = f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    success = percent_with_interval(wilson_interval(n_correct, len(is_correct)))
    return (str(len(value)), success, f"{np.mean(value):.3f}", area, f"{brier_score(value, is_correct):.3f}")


def solutions_section(run: Run, output: Path) -> str:
    titles = _first_of_each_grade(run.solutions)
    if not titles:
        return _not_found(run, "values.jsonl", "solutions")
    turns = ", the seeds taking turns" if len(run.solutions) > 1 else ""
    png = plots.plot_value_along_solutions(titles, output / "value_along_solutions.png")
    intro = (
        f"The first {N_SHOWN_PER_GRADE} solutions of each grade on file{turns}, not a selection. The ground of a "
        "token is V after it; point at a token for the number. V is also printed after the prompt and at the end of "
        "each line. After the last token there is no state, so it has no V."
    )
    articles = [f"<article><h3>{escape(title)}</h3>\n{coloured_solution(s)}</article>" for title, s in titles]
    spoken = "; ".join(
        f"{title}, V from {s.values[s.states()[0]]:.2f} to {s.values[s.states()[-1]]:.2f}" for title, s in titles
    )
    lines = picture(
        png,
        alt=f"Value along the solutions above: {spoken}.",
        caption="V of the prompt and after each generated token but the last. "
        "Grey vertical lines are ends of reasoning lines; dotted: V = 0.5.",
    )
    return "\n".join((paragraph(intro), value_legend(), '<div class="solutions">', *articles, "</div>", lines))


def _first_of_each_grade(by_folder: Mapping[str, Sequence[SolutionValues]]) -> list[tuple[str, SolutionValues]]:
    """Titled solutions: of each grade the first of each seed, then the second of each, until there are enough."""
    shown: list[tuple[str, SolutionValues]] = []
    for grade in Grade:
        of_grade = [
            [(f"{s.task_id}{f', {folder}' if len(by_folder) > 1 else ''}: {grade.value}", s) for s in own]
            for folder, solutions in by_folder.items()
            if (own := [s for s in solutions if s.grade is grade and s.states()])
        ]
        shown += [titled for turn in zip_longest(*of_grade) for titled in turn if titled][:N_SHOWN_PER_GRADE]
    return shown


def _not_found(run: Run, name: str, what: str) -> str:
    lost = [path for path in run.missing if path.endswith(name)]
    if not lost:
        return absent(f"{name} holds no {what}.")
    return absent(f"Left out: {', '.join(lost)} not found, so there are no {what}.")


def _flatten(info: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for name, entry in info.items():
        if isinstance(entry, dict):
            facts += _flatten(entry, f"{prefix}{name}.")
        else:
            facts.append((prefix + name, entry if isinstance(entry, str) else json.dumps(entry)))
    return facts


def _last_numbers(curves: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    return [f"{key} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for key, points in curves.items()]
