"""Pictures and tables of the study of digit strings, from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evaluation.figures import INK, PALETTE, figure, legend_of_all, log_scale_y
from posttrain.evaluation.page import Section, picture
from posttrain.evaluation.study_files import StudyRun
from posttrain.evaluation.tables import Table, over_seeds

MARKERS = "osD^v"
COLUMNS = {
    "tv": ("TV to R/Z", 3),
    "solved": ("mass on solutions", 3),
    "distinct": ("distinct solutions in {n_draws} draws, expected", 1),
    "found": ("distinct solutions found while training", 1),
}


def draw(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """TV and distinct solutions against samples, and the table of the end."""
    table = results_table(run).to_html("After training: means and 95 % intervals (Student's t over seeds)")
    return (("strings", "Digit strings", _curves(run, output / "strings.png") + table),)


def result_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    """Titles and tables of the main results."""
    return (("Means over seeds, with 95 % intervals where there are several", results_table(run)),)


def results_table(run: StudyRun) -> Table:
    """The last evaluations, a row for each method."""
    titles = (title.format(n_draws=run.config["n_draws"]) for title, _ in COLUMNS.values())
    header = ("method", "seeds", "strings sampled", *titles)
    rows = []
    for method in run.methods():
        n_seeds = len(run.numbers("tv", method=method))
        samples = f"{run.numbers('samples', method=method)[0]:,.0f}"
        cells = [over_seeds(run.numbers(key, method=method), digits, lowest=0) for key, (_, digits) in COLUMNS.items()]
        rows.append((method, str(n_seeds), samples, *cells))
    return Table(header, tuple(rows))


def _curves(run: StudyRun, path: Path) -> str:
    n_digits, target = run.config["n_digits"], run.config["target_sum"]
    with figure(path, 1, 3, width=13.0, height=4.8) as axes:
        for place, method in enumerate(run.methods()):
            for axis, key in zip(axes[0], ("tv", "distinct", "solved"), strict=True):
                _curve(axis, run, method, key, place)
        for axis in axes[0]:
            axis.set_xlabel("strings sampled")
        axes[0, 0].set_title("TV to R/Z, exact")
        axes[0, 1].set_title(f"distinct solutions in {run.config['n_draws']:,} draws, exact")
        axes[0, 2].set_title("mass on solutions, exact")
        log_scale_y(axes[0, 0])
        best = expected_distinct_at_target(n_digits, target, run.config["floor"], run.config["n_draws"])
        axes[0, 1].axhline(best, color=INK, linewidth=0.8, linestyle=(0, (1, 1.5)))
        mass = mass_at_target(n_digits, target, run.config["floor"])
        axes[0, 2].axhline(mass, color=INK, linewidth=0.8, linestyle=(0, (1, 1.5)))
        legend_of_all(axes[0, 0], n_columns=5)
    caption = (
        f"Strings of {n_digits} digits with sum {target}. Bands span the seeds. Dotted: what the target R/Z itself "
        "gives. policy_gradient and grpo maximise E[R] and have another target."
    )
    return picture(path, alt="Total variation and distinct solutions against samples", caption=caption)


def _curve(axis: Any, run: StudyRun, method: str, key: str, place: int) -> None:
    points = [curves[f"eval_{key}"] for curves in run.curves[method].values()]
    samples = [curves["eval_samples"] for curves in run.curves[method].values()]
    x = np.array(samples[0])[:, 1]
    y = np.array(points)[:, :, 1]
    colour = PALETTE[place % len(PALETTE)]
    marks = max(1, len(x) // 6)
    axis.plot(x, y.mean(0), color=colour, marker=MARKERS[place], markevery=marks, markersize=5, label=method)
    axis.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0)


def n_solutions(n_digits: int, target_sum: int) -> int:
    """How many strings of n digits add up to target_sum: the coefficient of its power in (1 + z + … + z⁹)ⁿ."""
    counts = np.ones(1)
    for _ in range(n_digits):
        counts = np.convolve(counts, np.ones(10))
    return round(counts[target_sum])


def expected_distinct_at_target(n_digits: int, target_sum: int, floor: float, n_draws: int) -> float:
    """Expected distinct solutions among draws from R/Z."""
    n = n_solutions(n_digits, target_sum)
    return n * (1 - (1 - mass_at_target(n_digits, target_sum, floor) / n) ** n_draws)


def mass_at_target(n_digits: int, target_sum: int, floor: float) -> float:
    """Of the solutions under R/Z."""
    n = n_solutions(n_digits, target_sum)
    return n / (n + floor * (10**n_digits - n))
