"""Tables of the study of integral reinforcement learning, from its results alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrain.control.integral.linear import loglog_slope
from posttrain.evaluation.statistics import seed_interval
from posttrain.evaluation.study_files import StudyRun
from posttrain.evaluation.tables import NOT_APPLICABLE, Table

CLASSICS = ("trapezoid", "simpson", "cubic_spline", "gauss_legendre")
THEORY = {"trapezoid": -2.0, "simpson": -4.0, "cubic_spline": -4.0}  # of the error in the number of intervals
FLOOR = 1e-12  # errors below are rounding, and have no slope


def errors_table(run: StudyRun) -> Table:
    """|ω − ω*| of Example 1 by rule and number of samples, without data; the true gap at the most samples."""
    counts = node_counts(run, "data_free")
    header = ("rule, Example 1, data-free", *(f"N = {n}" for n in counts), f"true gap, N = {counts[-1]}")
    rows = []
    for method in methods_of(run, "data_free"):
        errors = curve(run, "omega_error", counts, experiment="data_free", method=method)
        gap = run.numbers("true_gap", experiment="data_free", method=method, n_nodes=counts[-1])
        rows.append((method, *(f"{error:.2e}" for error in errors), f"{gap[0]:.1e}"))
    return Table(header, tuple(rows))


def slopes_table(run: StudyRun) -> Table:
    """Fitted slopes in N − 1 beside theory, without data and from data (mean and interval over seeds)."""
    header = ("rule", "theory", "Example 1, data-free", "Example 1, data", "Example 2, data", "true gap, data-free")
    rows = []
    for method in methods_of(run, "data_free"):
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
    if len(slopes) == 1:
        return f"{slopes[0]:.2f}"
    interval = seed_interval(slopes)
    return f"{np.mean(slopes):.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def curve(run: StudyRun, key: str, counts: Sequence[int], **where: object) -> list[float]:
    """Means over seeds at each number of samples, of the rows that match."""
    found = [run.numbers(key, n_nodes=n, **where) for n in counts]
    return [float(np.mean(numbers)) for numbers in found if numbers]


def node_counts(run: StudyRun, experiment: str) -> list[int]:
    return sorted({row["n_nodes"] for row in run.rows if row["experiment"] == experiment})


def methods_of(run: StudyRun, experiment: str) -> list[str]:
    """Classic rules first, then Matérn kernels by smoothness, lengthscale, mean and jitter."""
    found = dict.fromkeys(row["method"] for row in run.rows if row["experiment"] == experiment)
    classics = [name for name in CLASSICS if name in found]
    return [*classics, *sorted(method for method in found if method not in classics)]
