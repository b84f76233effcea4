"""Pictures and tables of `posttrain control beer` and `beer-grid`, and of the recipe's value heads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posttrain.evaluation.figures import INK, PALETTE, figure, legend_of_all
from posttrain.evaluation.page import Section, absent, paragraph, picture
from posttrain.evaluation.run_folder import Curve, Curves
from posttrain.evaluation.statistics import seed_interval
from posttrain.evaluation.study_files import StudyRun
from posttrain.evaluation.tables import Table, over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REWARDS = {"cost": "−1 a move", "distance": "1 − distance", "goal": "1 at the goal"}
CONTROL_PANELS = (
    ("eval_return", "return"),
    ("eval_q_error", "|Q − return that follows|"),
    ("eval_rank", "numerical rank of features"),
    ("eval_beer/firing_rate", "share of rows above the bound"),
    ("eval_beer/bound", "mean bound U"),
    ("eval_beer/cosine", "mean cosine of φ and φ'"),
)
GRID_PANELS = (
    ("eval_q_error", "mean |Q − Q*|"),
    ("eval_beer/firing_rate", "share of rows above the bound"),
    ("eval_beer/bound", "mean bound U"),
    ("eval_rank", "numerical rank of features"),
)
CONTROL_COLUMNS = {
    "return": ("return", 1),
    "q_error": ("error of Q", 2),
    "rank": ("rank", 1),
    "effective_rank": ("effective rank", 1),
    "beer/firing_rate": ("fires, %", 2),
    "cpu_s": ("CPU s", 0),
}
GRID_COLUMNS = {
    "q_error": ("error of Q", 3),
    "rank": ("rank", 1),
    "effective_rank": ("effective rank", 1),
    "beer/cosine": ("cosine", 3),
    "beer/bound": ("bound U", 3),
    "beer/firing_rate": ("fires, %", 2),
}
VALUE_HEAD_COLUMNS = {
    "auc": ("AUC, all states", 4),
    "auc_last": ("AUC, last state", 4),
    "brier": ("Brier, all states", 4),
    "beer/firing_rate": ("fires, %", 4),
    "beer/firing_rate_max": ("at most, %", 4),
    "beer/cosine": ("cosine", 3),
}
PER_CENT = ("beer/firing_rate", "beer/firing_rate_max")
# What a mean cannot pass, so that its interval ends there.
LIMITS = {
    "beer/firing_rate": (0.0, 1.0),
    "beer/firing_rate_max": (0.0, 1.0),
    "beer/cosine": (-1.0, 1.0),
    "q_error": (0.0, math.inf),
}
UNLIMITED = (-math.inf, math.inf)
# Penalties that change nothing lie on one line; dashes let those below show.
DASHES = ("-", (0, (6, 3)), (0, (2, 2)), (0, (6, 2, 1, 2)), (0, (1, 3)), (0, (9, 3)), (0, (4, 2, 1, 2, 1, 2)))


def draw(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """Learning curves and tables of agents on one control task."""
    if not run.rows:
        return (("results", "Results", absent("No run has ended yet.")),)
    task, methods = run.config["task"], run.methods()
    path = output / "curves.png"
    with figure(path, 2, 3, width=12.0, height=7.0) as grid:
        for axes, (key, label) in zip(grid.flat, CONTROL_PANELS, strict=True):
            _panel(axes, {method: run.curves.get(method, {}) for method in methods}, key)
            axes.set(xlabel="steps", ylabel=label)
            axes.locator_params(axis="x", nbins=5)
        grid[1, 1].axhline(1, color=INK, linewidth=0.8, linestyle=":")
        legend_of_all(grid[0, 0], n_columns=len(methods))
    shown = picture(
        path,
        alt=f"Six panels of curves over training steps on {task}, a line for each method",
        caption="Means over seeds with 95 % intervals (Student's t). The bound and how often it is violated are "
        "measured on transitions from the replay, for all methods alike; a critic that is consistent is never above.",
    )
    tables = _table(run, CONTROL_COLUMNS, {}).to_html("At the end: mean over seeds and 95 % interval.")
    gains = gain_table(run)
    return (
        ("curves", f"{task}: learning curves", shown),
        ("results", "At the end of training", tables),
        ("gains", "Against the same algorithm without a penalty", _gains_html(gains)),
    )


def draw_grid(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """Curves against exact values, a column for each reward of the grid, and a table of each."""
    rewards = [reward for reward in REWARDS if any(row.get("reward") == reward for row in run.rows)]
    if not rewards:
        return (("results", "Results", absent("No run has ended yet.")),)
    methods, path = run.methods(), output / "grid.png"
    with figure(path, len(GRID_PANELS), len(rewards), width=4.2 * len(rewards), height=11.0, sharex=True) as grid:
        for column, reward in enumerate(rewards):
            by_method = {method: run.curves.get(f"{reward}/{method}", {}) for method in methods}
            for axes, (key, label) in zip(grid[:, column], GRID_PANELS, strict=True):
                _panel(axes, by_method, key)
                axes.set_ylabel(label if column == 0 else "")
            grid[0, column].set(title=f"reward: {REWARDS[reward]}", yscale="log")
            grid[2, column].axhline(1, color=INK, linewidth=0.8, linestyle=":")
            grid[-1, column].set_xlabel("updates")
        legend_of_all(grid[0, 0], n_columns=len(methods))
    shown = picture(
        path,
        alt="Curves over updates on the grid world: error, violations of the bound, the bound and the rank",
        caption="Means over seeds with 95 % intervals (Student's t), over all pairs of state and action. The optimal "
        "values are those of value iteration.",
    )
    tables = "\n".join(
        _table(run, GRID_COLUMNS, {"reward": reward}).to_html(f"Reward {REWARDS[reward]}, after the last update.")
        for reward in rewards
    )
    return (("curves", "On the grid, against exact values", shown), ("results", "At the end of training", tables))


def draw_value_head(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """The table of a language model's value head with and without the penalty; its curves are those of the trainer."""
    table = _table(run, VALUE_HEAD_COLUMNS, {}).to_html("Held-out answers: mean over seeds and 95 % interval.")
    return (("results", "The value of held-out answers", table),)


def value_head_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    """The same table with its caption, for a README."""
    return (("Held-out answers", _table(run, VALUE_HEAD_COLUMNS, {})),)


def result_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    """The same tables with their captions, for a README."""
    if run.name == "beer":
        gains = gain_table(run)
        ends = (f"{run.config['task']}: at the end of training", _table(run, CONTROL_COLUMNS, {}))
        return (ends, *((("Return against the same algorithm without a penalty", gains),) if gains.rows else ()))
    rewards = [reward for reward in REWARDS if any(row.get("reward") == reward for row in run.rows)]
    return tuple((f"Reward {REWARDS[reward]}", _table(run, GRID_COLUMNS, {"reward": reward})) for reward in rewards)


def gain_table(run: StudyRun) -> Table:
    """What a penalty changes in the return, seed by seed: the same seed begins from the same weights."""
    rows = []
    for method in run.methods():
        base = method.partition("_")[0]
        if method == base or base not in run.methods():
            continue
        returns = {
            name: {row["seed"]: row["return"] for row in run.rows if row["method"] == name} for name in (method, base)
        }
        shared = sorted(returns[method].keys() & returns[base].keys())
        gains = [returns[method][seed] - returns[base][seed] for seed in shared]
        rows.append((f"{method} over {base}", over_seeds(gains, 1), ", ".join(f"{gain:+.0f}" for gain in gains)))
    return Table(("method", "gain in return", "by seed"), tuple(rows))


def _gains_html(gains: Table) -> str:
    if not gains.rows:
        return paragraph("No method was run both with and without a penalty.")
    return gains.to_html("Difference of the last returns, mean over seeds and 95 % interval.")


def _table(run: StudyRun, columns: Mapping[str, tuple[str, int]], where: Mapping[str, str]) -> Table:
    rows = []
    for method in run.methods():
        cells = []
        for key, (_, digits) in columns.items():
            scale = 100 if key in PER_CENT else 1
            numbers = [scale * x for x in run.numbers(key, method=method, **where)]
            cells.append(over_seeds(numbers, digits, lowest=LIMITS.get(key, UNLIMITED)[0]))
        rows.append((method, *cells))
    return Table(("method", *(heading for heading, _ in columns.values())), tuple(rows))


def _panel(axes: Axes, by_method: Mapping[str, Mapping[int, Curves]], key: str) -> None:
    """One number over steps: a line and an interval for each method."""
    for colour, dashes, (method, by_seed) in zip(PALETTE, DASHES, by_method.items(), strict=False):
        steps, values = aligned(curves[key] for curves in by_seed.values() if key in curves)
        if not len(steps):
            continue
        axes.plot(steps, values.mean(axis=0), color=colour, linestyle=dashes, label=method)
        if len(values) > 1:
            ends = [seed_interval(values[:, place]) for place in range(len(steps))]
            limits = LIMITS.get(key.removeprefix("eval_"), UNLIMITED)
            low, high = np.clip([(end.low, end.high) for end in ends], *limits).T
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def aligned(curves: Iterable[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] that all curves have, and their values [S, T]: a run that is not at its end shortens the picture."""
    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(points) for points in by_step))) if by_step else []
    return np.array(steps), np.array([[points[step] for step in steps] for points in by_step])
