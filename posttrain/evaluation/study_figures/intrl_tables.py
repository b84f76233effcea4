"""Tables of the study of integral reinforcement learning, from its results alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from posttrain.control.integral.linear import loglog_slope
from posttrain.evaluation.study_files import StudyRun
from posttrain.evaluation.tables import NOT_APPLICABLE, Table, over_seeds

CLASSICS = ("trapezoid", "simpson", "cubic_spline", "gauss_legendre")
THEORY = {"trapezoid": -2.0, "simpson": -4.0, "cubic_spline": -4.0}  # of the error in the number of intervals
EXAMPLES = {"example_one": "Example 1", "example_two": "Example 2"}
FLOOR = 1e-12  # errors below are rounding, and have no slope


def result_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    """Titles and tables of the main results."""
    tables = [
        ("|ω − ω*| of Example 1, by the Stein equation", errors_table(run, of="from_data")),
        ("Slopes of log error in log (N − 1), intervals over seeds", slopes_table(run, of="from_data")),
        ("10³ (J(u) − J*) of Example 2 from (−100, 100), J* = 15000, by iteration", first_figure_table(run)),
        ("Policies that are optimal for Euler's steps, on the linear cart-pole", euler_table(run)),
    ]
    if methods_of(run, "calibration"):
        tables.append(("Bayesian quadrature's error bars", calibration_table(run)))
    return tuple(tables)


def errors_table(run: StudyRun, *, of: str) -> Table:
    """|ω − ω*| of Example 1 without data, and the true gap at the most samples, for the rules of an experiment."""
    counts = node_counts(run, "data_free")
    header = ("rule, Example 1, data-free", *(f"N = {n}" for n in counts), f"true gap, N = {counts[-1]}")
    rows = []
    for method in methods_of(run, of):
        errors = curve(run, "omega_error", counts, experiment="data_free", method=method)
        gap = run.numbers("true_gap", experiment="data_free", method=method, n_nodes=counts[-1])
        rows.append((method, *(f"{error:.2e}" for error in errors), f"{gap[0]:.1e}"))
    return Table(header, tuple(rows))


def slopes_table(run: StudyRun, *, of: str) -> Table:
    """Fitted slopes in N − 1 beside theory, without data and from data (mean and interval over seeds)."""
    header = ("rule", "theory", "Example 1, data-free", "Example 1, data", "Example 2, data", "true gap, data-free")
    rows = []
    for method in methods_of(run, of):
        with_data = [slope_over_seeds(run, "omega_error", method, system) for system in ("example_one", "example_two")]
        free = slope(run, "omega_error", experiment="data_free", method=method)
        gap = slope(run, "true_gap", experiment="data_free", method=method)
        rows.append((method, theory_of(run, method), free, *with_data, gap))
    return Table(header, tuple(rows))


def theory_of(run: StudyRun, method: str) -> str:
    """−2 and −4 as rates; for Matérn kernels the theorem's bound, which holds without jitter."""
    if method in THEORY:
        return f"{THEORY[method]:.0f}"
    row = next(row for row in run.rows if row["method"] == method)
    return f"<= -{row['b']}" if row.get("jitter") == 0.0 else NOT_APPLICABLE


def slope(run: StudyRun, key: str, **where: object) -> str:
    counts = node_counts(run, "data_free")
    errors = curve(run, key, counts, **where)
    floor = FLOOR if key == "omega_error" else FLOOR**2
    return f"{loglog_slope(counts, errors):.2f}" if len(errors) == len(counts) > 1 and min(errors) > floor else "floor"


def slope_over_seeds(run: StudyRun, key: str, method: str, system: str) -> str:
    counts = node_counts(run, "from_data")
    by_count = [
        run.numbers(key, experiment="from_data", method=method, system=system, n_nodes=count) for count in counts
    ]
    if not by_count or not by_count[0]:
        return NOT_APPLICABLE
    if len(counts) < 2 or np.min(by_count) <= 30 * FLOOR:
        return "floor"
    slopes = [loglog_slope(counts, errors) for errors in np.transpose(by_count)]
    return over_seeds(slopes, 2)


def curve(run: StudyRun, key: str, counts: Sequence[int], **where: object) -> list[float]:
    """Geometric means over seeds of the absolute value at each number of samples, of the rows that match."""
    found = [run.numbers(key, n_nodes=n, **where) for n in counts]
    return [float(np.exp(np.log(np.abs(numbers)).mean())) for numbers in found if numbers]


def node_counts(run: StudyRun, experiment: str) -> list[int]:
    return sorted({row["n_nodes"] for row in run.rows if row["experiment"] == experiment})


def methods_of(run: StudyRun, experiment: str) -> list[str]:
    """Classic rules first, then Matérn kernels by smoothness, lengthscale, mean and jitter."""
    found = dict.fromkeys(row["method"] for row in run.rows if row["experiment"] == experiment)
    classics = [name for name in CLASSICS if name in found]
    return [*classics, *sorted(method for method in found if method not in classics)]


def first_figure_table(run: StudyRun) -> Table:
    rows_of = [row for row in run.rows if row["experiment"] == "first_figure"]
    iterations = sorted({row["iteration"] for row in rows_of})
    header = ("rule, Example 2", *(f"iteration {iteration}" for iteration in iterations))
    rows = []
    for n, method in sorted({(row["n_nodes"], row["method"]) for row in rows_of}):
        where = {"experiment": "first_figure", "method": method, "n_nodes": n}
        gaps = [run.numbers("true_gap", **where, iteration=iteration)[0] for iteration in iterations]
        rows.append((f"N = {n}, {method}", *(f"{1e3 * gap:.4g}" for gap in gaps)))
    return Table(header, tuple(rows))


def calibration_table(run: StudyRun) -> Table:
    """Coverage of 95 % intervals, and the root mean square of error / standard deviation: 1 if calibrated."""
    counts = node_counts(run, "calibration")
    ends = sorted({counts[0], counts[-1]})
    header = (
        "rule",
        "lowest coverage, %",
        *(f"error / sd, {name}, N = {n}" for name in EXAMPLES.values() for n in ends),
    )
    rows = []
    for method in methods_of(run, "calibration"):
        where = {"experiment": "calibration", "method": method}
        scores = [
            f"{np.mean(run.numbers('score_rms', **where, system=system, n_nodes=n)):.2g}"
            for system in EXAMPLES
            for n in ends
        ]
        rows.append((method, f"{100 * min(run.numbers('coverage', **where)):.1f}", *scores))
    return Table(header, tuple(rows))


def newton_table(run: StudyRun) -> Table:
    rows_of = [row for row in run.rows if row["experiment"] == "newton"]
    errors = [row["omega_error"] for row in rows_of]
    squared = [
        NOT_APPLICABLE,
        *(f"{after / before**2:.3f}" if after > FLOOR else "rounding" for before, after in pairwise(errors)),
    ]
    rows = [
        (str(row["iteration"]), f"{row['omega_error']:.2e}", ratio, f"{row['newton_difference']:.0e}")
        for row, ratio in zip(rows_of, squared, strict=True)
    ]
    return Table(("iteration", "|P − P*|", "error / (error before)²", "largest difference to Newton's"), tuple(rows))


def euler_table(run: StudyRun) -> Table:
    rows_of = [row for row in run.rows if row["experiment"] == "euler"]
    gaps = [row["true_gap"] for row in rows_of]
    ratios = [NOT_APPLICABLE, *(f"{before / after:.2f}" for before, after in pairwise(gaps))]
    rows = [
        (f"{row['step_s']:g}", f"{row['true_gap']:.3e}", ratio) for row, ratio in zip(rows_of, ratios, strict=True)
    ]
    return Table(("Euler step, s", "true gap", "gap before / gap"), tuple(rows))
