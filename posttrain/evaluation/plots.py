"""The report's pictures: each function draws one PNG from data that is already in memory and returns its path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.evaluation.budget_curves import EXACT, BudgetPoint
from posttrain.evaluation.by_tag import TagValue, labels_of
from posttrain.evaluation.calibration import ReliabilityBin
from posttrain.evaluation.comparison import MethodSummary
from posttrain.evaluation.figures import (
    GRID,
    INK,
    PALETTE,
    colour_of_policy,
    figure,
    legend_below,
    legend_of_all,
    log_scale_y,
    look_of_decoding,
)
from posttrain.evaluation.records import split_method
from posttrain.evaluation.run_folder import Curve, Curves, SolutionValues
from posttrain.evaluation.tables import GREEDY, method_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED_FROM = 60  # points; shorter curves are drawn as logged
_GREY = "#8A8A8A"
_PANELS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Loss", lambda key: key == "loss" or key.startswith("loss/")),
    ("Value and reward", lambda key: (key.startswith("value/") and "grad_norm" not in key) or key == "reward"),
    (
        "Distance to the reference, nats",
        lambda key: not key.startswith("loss/") and ("kl" in key or "log_ratio" in key),
    ),
    ("Entropy, nats", lambda key: key.endswith("entropy")),
    ("Preference rewards", lambda key: key.startswith("rewards/")),
    ("Gradient norm", lambda key: key.endswith("grad_norm")),
)


def plot_learning_curves(stage: str, by_seed: Sequence[Curves], path: Path) -> Path | None:
    """Loss terms, value, distance to the reference and gradient norms against the step; None when nothing was logged.

    Seeds share a colour.  Curves of 60 points and more are drawn faint, with their running mean on top.
    """
    keys = sorted({key for curves in by_seed for key in curves})
    panels = [(title, [key for key in keys if belongs(key)]) for title, belongs in _PANELS]
    panels = [(title, shown) for title, shown in panels if shown]
    if not panels:
        return None
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with figure(path, n_rows, n_columns, width=4.9 * n_columns, height=3.6 * n_rows) as grid:
        for axes, (title, shown) in zip(grid.flat, panels, strict=False):
            _draw_curves(axes, shown, by_seed)
            axes.set_title(f"{stage}: {title}")
            axes.set_xlabel("optimiser step")
            if title == "Gradient norm" and _all_positive(shown, by_seed):
                log_scale_y(axes)
            legend_below(axes)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
    return path


def plot_accuracy_by_method(summaries: Sequence[MethodSummary], path: Path) -> Path:
    """Bars with 95 % intervals, best on top; with several seeds, each seed's accuracy as a dot."""
    ordered = sorted(summaries, key=lambda s: (s.accuracy.estimate, s.method))
    policies = [split_method(s.method)[0] for s in ordered]
    with figure(path, 1, 1, width=8.6, height=1.1 + 0.42 * len(ordered)) as grid:
        axes = grid[0, 0]
        for y, summary in enumerate(ordered):
            x, low, high = (100 * v for v in (summary.accuracy.estimate, summary.accuracy.low, summary.accuracy.high))
            colour = colour_of_policy(policies[y], policies)
            axes.barh(y, x, height=0.62, color=colour, alpha=0.75)
            axes.errorbar(x, y, xerr=[[x - low], [high - x]], color=INK, capsize=3, linewidth=1.2)
            dots = [100 * accuracy for _, accuracy in summary.by_seed] if len(summary.by_seed) > 1 else []
            axes.plot(dots, [y] * len(dots), "o", markersize=4, markerfacecolor="white", markeredgecolor=INK)
            axes.annotate(f"{x:.1f}", (max(high, *dots, 0.0), y), (9, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(ordered)), [method_label(s.method, s.budget) for s in ordered])
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("problems solved, %")
        axes.grid(visible=False)  # the numbers stand beside the bars
    return path


def plot_accuracy_by_compute(points: Sequence[BudgetPoint], path: Path) -> Path | None:
    """Accuracy against samples and against generated tokens per problem, log2; greedy methods as dashed lines.

    A policy has a colour, a decoding its marker and line; expectations over subsets ("exact") have hollow markers.
    None when no method was given more than one sample.
    """
    greedy = [p for p in points if split_method(p.label)[1] == GREEDY]
    labels = list(dict.fromkeys(p.label for p in points if p not in greedy))
    searched = [split_method(label)[0] for label in labels]
    if not any(p.budget > 1 for p in points):
        return None
    with figure(path, 1, 2, width=9.8, height=6.0, sharey=True) as grid:
        for axes, cost_of, unit in (
            (grid[0, 0], lambda p: float(p.budget), "samples per problem"),
            (grid[0, 1], lambda p: p.tokens, "generated tokens per problem"),
        ):
            for i, label in enumerate(labels):
                shift = 2 ** (0.05 * (i - (len(labels) - 1) / 2))  # keeps the intervals of one budget apart
                own = sorted((p for p in points if p.label == label), key=cost_of)
                x = [shift * cost_of(p) for p in own]
                _draw_budget_line(axes, x, own, _look(label, labels))
            for p in greedy:
                policy = split_method(p.label)[0]
                if policy in searched or policy == "sft":
                    colour = colour_of_policy(policy, searched)
                    axes.axhline(100 * p.accuracy.estimate, color=colour, linestyle="--", linewidth=1.3, label=p.label)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.set_xlabel(f"{unit} (log scale)")
        grid[0, 0].set_ylabel("problems solved, %")
        legend_of_all(grid[0, 0], n_columns=3)
    return path


def plot_accuracy_by_tag(tag: str, values: Sequence[TagValue], path: Path) -> Path:
    """Accuracy with its 95 % interval on the problems of each value of a tag, the methods one below the other."""
    labels = labels_of(values)
    room = 0.8 / len(labels)  # of one row, for each method
    height = 1.4 + len(values) * (0.2 + 0.14 * len(labels)) + 0.08 * len(labels)
    with figure(path, 1, 1, width=8.6, height=height) as grid:
        axes = grid[0, 0]
        for i, label in enumerate(labels):
            found = [(row, value.accuracy[label]) for row, value in enumerate(values) if label in value.accuracy]
            x = [100 * at.estimate for _, at in found]
            y = [row + room * (i - (len(labels) - 1) / 2) for row, _ in found]
            below, above = zip(*((at.estimate - at.low, at.high - at.estimate) for _, at in found), strict=True)
            look = {**_look(label, labels), "linestyle": "none"}
            error = 100 * np.array([below, above])
            axes.errorbar(x, y, xerr=error, capsize=2, elinewidth=1, label=label, **look)
        for row in range(1, len(values)):
            axes.axhline(row - 0.5, color=GRID, linewidth=0.8)
        axes.set_yticks(range(len(values)), [f"{value.value} ({value.n_problems})" for value in values])
        axes.set_ylim(len(values) - 0.5, -0.5)  # the first value on top
        axes.set_xlim(-2, 102)
        axes.set_xlabel("problems solved, %")
        axes.set_ylabel(f"{tag} (problems)")
        axes.grid(visible=False, axis="y")
        legend_of_all(axes, n_columns=3)
    return path


def plot_calibration(panels: Sequence[tuple[str, Sequence[ReliabilityBin], Sequence[float]]], path: Path) -> Path:
    """A reliability diagram over the histogram of the values for each (title, bins, values)."""
    n = len(panels)
    with figure(path, 2, n, width=3.5 * n, height=4.8, height_ratios=[3, 1], sharex="col") as grid:
        for column, (title, bins, values) in enumerate(panels):
            top, bottom = grid[0, column], grid[1, column]
            top.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1.2)
            x, y = [b.mean_value for b in bins], [b.success.estimate for b in bins]
            error = [
                [b.success.estimate - b.success.low for b in bins],
                [b.success.high - b.success.estimate for b in bins],
            ]
            top.errorbar(x, y, yerr=error, fmt="o", color=PALETTE[0], capsize=2, linewidth=1.2, markersize=5)
            top.set_title(title)
            top.set_ylim(-0.03, 1.03)
            low, high = min(0.0, min(values)), max(1.0, max(values))
            bottom.hist(values, bins=np.linspace(low, high, 25).tolist(), color=PALETTE[0], alpha=0.6)
            bottom.set_xlabel("value V")
            bottom.set_xlim(low - 0.03, high + 0.03)
        grid[0, 0].set_ylabel("share that ended correct")
        grid[1, 0].set_ylabel("solutions")
    return path


def plot_value_along_solutions(solutions: Sequence[tuple[str, SolutionValues]], path: Path) -> Path:
    """V at each state of each (title, solution) as a step line; vertical lines mark the ends of reasoning lines."""
    n_columns = min(2, len(solutions))
    n_rows = -(-len(solutions) // n_columns)
    every = [solution.values[t] for _, solution in solutions for t in solution.states()]
    low, high = min(0.0, *every), max(1.0, *every)
    with figure(path, n_rows, n_columns, width=4.9 * n_columns, height=2.5 * n_rows, sharey=True) as grid:
        for axes, (title, solution) in zip(grid.flat, solutions, strict=False):
            states = solution.states()
            axes.step(range(len(states)), [solution.values[t] for t in states], where="post", color=PALETTE[0])
            for end in solution.step_states():
                axes.axvline(end - states.start, color=GRID, linewidth=1.4, zorder=0.5)
            axes.axhline(0.5, color=_GREY, linestyle=":", linewidth=1)
            axes.set_title(title)
            axes.set_ylim(low - 0.05, high + 0.05)
            axes.set_xlabel("tokens generated so far")
            axes.grid(axis="x", visible=False)
        for row in grid:
            row[0].set_ylabel("value V")
        for axes in list(grid.flat)[len(solutions) :]:
            axes.set_axis_off()
    return path


def _draw_curves(axes: Axes, keys: Sequence[str], by_seed: Sequence[Curves]) -> None:
    for i, key in enumerate(keys):
        colour = PALETTE[i % len(PALETTE)]
        line = "-" if i < len(PALETTE) else "--"
        label: str | None = key
        for curves in by_seed:
            if key not in curves:
                continue
            steps, numbers = (np.asarray(x) for x in zip(*curves[key], strict=True))
            if len(steps) >= SMOOTHED_FROM:
                axes.plot(steps, numbers, line, color=colour, alpha=0.18, linewidth=1)
                steps, numbers = _running_mean(curves[key])
            axes.plot(steps, numbers, line, color=colour, alpha=1 if len(by_seed) == 1 else 0.75, label=label)
            label = None


def _running_mean(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The mean of a window of 1/20 of the points, placed at the window's middle."""
    window = max(3, len(curve) // 20)
    weight = np.full(window, 1 / window)
    steps, numbers = (np.convolve(np.asarray(x), weight, mode="valid") for x in zip(*curve, strict=True))
    return steps, numbers


def _all_positive(keys: Iterable[str], by_seed: Sequence[Curves]) -> bool:
    return all(number > 0 for curves in by_seed for key in keys for _, number in curves.get(key, ()))


def _look(label: str, labels: Sequence[str]) -> dict[str, Any]:
    """How one of these methods is drawn, as matplotlib keywords. With one policy, colours tell decodings."""
    policies, decodings = zip(*(split_method(_bare(other)) for other in labels), strict=True)
    policy, decoding = split_method(_bare(label))
    if len(set(policies)) > 1:
        colour = colour_of_policy(policy, policies)
    else:
        colour = PALETTE[list(dict.fromkeys(decodings)).index(decoding) % len(PALETTE)]
    marker, line = look_of_decoding(decoding, decodings)
    hollow = {"markerfacecolor": "white"} if label.endswith(EXACT) else {}
    return {"color": colour, "marker": marker, "linestyle": line, "markersize": 5, **hollow}


def _bare(label: str) -> str:
    """The method's name in a label, without its budget."""
    return label.removesuffix(EXACT).partition(", n = ")[0]


def _draw_budget_line(axes: Axes, x: Sequence[float], points: Sequence[BudgetPoint], look: Mapping[str, Any]) -> None:
    y = [100 * p.accuracy.estimate for p in points]
    error = [
        [100 * (p.accuracy.estimate - p.accuracy.low) for p in points],
        [100 * (p.accuracy.high - p.accuracy.estimate) for p in points],
    ]
    axes.errorbar(x, y, yerr=error, capsize=2, elinewidth=1, label=points[0].label, **look)
