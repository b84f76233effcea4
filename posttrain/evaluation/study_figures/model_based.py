"""Pictures and tables of the studies of model-based generalisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evaluation.figures import INK, PALETTE, figure, legend_of_all, log_scale_y
from posttrain.evaluation.page import Section, picture
from posttrain.evaluation.statistics import seed_interval
from posttrain.evaluation.study_files import StudyRun
from posttrain.evaluation.tables import NOT_APPLICABLE, Table, over_seeds

RATE = "reward_rate"
CURVE = f"eval_{RATE}"
LABELS = {
    "tabular": "replay, table",
    "replay": "replay",
    "learned": "learned model",
    "perfect": "perfect model",
    "learned_one_step": "learned model, 1 step",
    "perfect_one_step": "perfect model, 1 step",
    "learned_dynamics": "learned dynamics, true reward",
    "learned_reward": "true dynamics, learned reward",
    "latent": "latent model",
}
_COLOURS = dict(zip(LABELS, ("#8A8A8A", *PALETTE, "#7A5195"), strict=False))


def draw_theorem(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """Sizes of both sets against the number of observed pairs, one panel per class of models."""
    path = output / "theorem.png"
    with figure(path, 1, len(run.methods()), width=9.2, height=4.0) as grid:
        for axes, name in zip(grid[0], run.methods(), strict=True):
            rows = [row for row in run.rows if row["method"] == name]
            x = [row["n_observed"] for row in rows]
            axes.plot(x, [row["n_model_free"] for row in rows], "o-", color=PALETTE[1], label="satisfy Bellman on D")
            based = [row["n_model_based"] for row in rows]
            axes.plot(x, based, "s--", color=PALETTE[0], label="optimal in a model that agrees on D")
            axes.set_title(f"{name} models")
            axes.set_xlabel("observed pairs (s, a), of 8")
            log_scale_y(axes)
        grid[0, 0].set_ylabel("value functions left, mean")
        legend_of_all(grid[0, 0], n_columns=2)
    caption = (
        "Value functions that are left when some pairs are known. What a model adds is the gap; for tables, whose "
        "entries say nothing of one another, there is none."
    )
    body = picture(path, alt="Sizes of the two sets", caption=caption) + theorem_table(run).to_html("Means")
    return (("theorem", "Values that fit the data, and models that do", body),)


def theorem_table(run: StudyRun) -> Table:
    header = ("class, observed pairs", "satisfy Bellman", "of a model", "strictly fewer, %", "violations")
    rows = [
        (
            f"{row['method']}, {row['n_observed']}",
            f"{row['n_model_free']:.1f}",
            f"{row['n_model_based']:.1f}",
            f"{100 * row['strict_share']:.0f}",
            str(row["n_violations"]),
        )
        for row in run.rows
    ]
    return Table(header, tuple(rows))


def draw_panflute(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """Reward per step by size of the data and method, and how it was reached."""
    sizes = sorted({row["n_transitions"] for row in run.rows})
    bars = output / "panflute.png"
    with figure(bars, 1, 1, width=9.2, height=4.6) as grid:
        _draw_bars(grid[0, 0], run, sizes)
        grid[0, 0].axhline(best_rate(run), color=INK, linestyle="--", linewidth=1.2, label="optimum")
        grid[0, 0].set_ylim(0, 1.3 * best_rate(run))
        legend_of_all(grid[0, 0], n_columns=4)
    caption = "Greedy reward per step without the event that comes by chance; bars are means with 95 % intervals."
    parts = picture(bars, alt="Reward per step by method", caption=caption) + panflute_table(run).to_html(
        "Reward per step: mean over seeds with Student's t interval"
    )
    sections = [("panflute", "Reward per step after learning from m random transitions", parts)]
    panels = [(f"m = {size}", f"m-{size}") for size in sizes]
    return (*sections, *_curves(run, output, panels, "updates of Q"))


def panflute_table(run: StudyRun) -> Table:
    """One row per size and method."""
    sizes = sorted({row["n_transitions"] for row in run.rows})
    rows = [
        (f"m = {size}, {LABELS[method]}", *_cells(run, method=method, n_transitions=size))
        for size in sizes
        for method in _in_order(run)
        if run.numbers(RATE, method=method, n_transitions=size)
    ]
    return Table(
        ("transitions, method", "reward per step", "by seed", "with chance events", "CPU s a seed"), tuple(rows)
    )


def draw_online(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """Learning curves by replay ratio, and where they end."""
    ratios = sorted({row["replay_ratio"] for row in run.rows})
    panels = [(f"{ratio} update{'s' * (ratio > 1)} per step", f"ratio-{ratio}") for ratio in ratios]
    table = online_table(run).to_html("Greedy return of an episode per step of it")
    soon = learning_table(run).to_html("Greedy return per step, averaged over all evaluations since the first update")
    return (
        *_curves(run, output, panels, "steps of the world"),
        ("online", "Where they end, and how soon", table + soon),
    )


def online_table(run: StudyRun) -> Table:
    """One row per replay ratio and method."""
    ratios = sorted({row["replay_ratio"] for row in run.rows})
    rows = [
        (f"{LABELS[method]}, {ratio} a step", *_cells(run, method=method, replay_ratio=ratio))
        for ratio in ratios
        for method in _in_order(run)
        if run.numbers(RATE, method=method, replay_ratio=ratio)
    ]
    return Table(("method, updates", "return per step", "by seed", "with chance events", "CPU s a seed"), tuple(rows))


def learning_table(run: StudyRun) -> Table:
    """How soon a method learns: its evaluations since the first update, averaged, and what it is ahead of replay."""
    rows = []
    for ratio in sorted({row["replay_ratio"] for row in run.rows}):
        averages = {method: _average_by_seed(run, f"ratio-{ratio}/{method}") for method in _in_order(run)}
        for method, by_seed in averages.items():
            replayed = averages.get("replay", {})
            gains = [by_seed[seed] - replayed[seed] for seed in sorted(by_seed.keys() & replayed.keys())]
            ahead = NOT_APPLICABLE if method == "replay" else over_seeds(gains, 3)
            rows.append((f"{LABELS[method]}, {ratio} a step", over_seeds(list(by_seed.values()), 3), ahead))
    return Table(("method, updates", "mean of all evaluations", "ahead of replay"), tuple(rows))


def _average_by_seed(run: StudyRun, folder: str) -> dict[int, float]:
    return {
        seed: float(np.mean([rate for step, rate in curves[CURVE] if step > run.config["n_first_steps"]]))
        for seed, curves in run.curves.get(folder, {}).items()
        if CURVE in curves
    }


IMAGINED_LABELS = {
    "replay": "replayed answers",
    "learned_reward": "and imagined ones, learned reward",
    "perfect": "and imagined ones, verifier",
}


def draw_imagined(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """How well V tells right answers from wrong ones, by what it was trained on."""
    path = output / "imagined.png"
    panels = (("auc", "AUC, all states"), ("brier", "Brier score, all states"))
    with figure(path, 1, len(panels), width=9.2, height=2.9, sharey=True) as grid:
        for axes, (key, title) in zip(grid[0], panels, strict=True):
            for place, method in enumerate(run.methods()):
                numbers = run.numbers(key, method=method)
                found = seed_interval(numbers)
                error = [[found.estimate - found.low], [found.high - found.estimate]]
                axes.errorbar(found.estimate, place, xerr=error, fmt="s", color=PALETTE[place], capsize=3)
                axes.plot(numbers, [place] * len(numbers), "o", markersize=3.5, markerfacecolor="white", color=INK)
            axes.set_title(title)
        labels = [IMAGINED_LABELS[method] for method in run.methods()]
        grid[0, 0].set_yticks(range(len(labels)), labels)
        grid[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    caption = "Means over seeds with 95 % intervals, seeds as dots; a higher AUC and a lower Brier score are better."
    body = picture(path, alt="AUC and Brier score", caption=caption) + imagined_table(run).to_html(
        "Values on held-out"
    )
    return (("imagined", "Values learned with imagined continuations", body),)


def imagined_table(run: StudyRun) -> Table:
    """One row per teacher."""
    keys = ("auc", "brier", "auc_half_way", "brier_half_way")
    rows = [
        (IMAGINED_LABELS[method], *(over_seeds(run.numbers(key, method=method), 3) for key in keys))
        for method in run.methods()
    ]
    return Table(("trained on", "AUC", "Brier", "AUC half-way", "Brier half-way"), tuple(rows))


def theorem_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    return (("Value functions left, means over true models", theorem_table(run)),)


def panflute_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    return (("PanFlute from m random transitions, greedy reward per step", panflute_table(run)),)


def online_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    world, size = run.config["world"], run.config["size"]
    return (
        (f"{world} of size {size} after {run.config['n_steps']:,} steps, greedy", online_table(run)),
        ("While learning: greedy return per step, over all evaluations since the first update", learning_table(run)),
    )


def imagined_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    return (("V on held-out answers, means over seeds", imagined_table(run)),)


def best_rate(run: StudyRun) -> float:
    """The reward per step of an optimal player of PanFlute who starts in silence."""
    n_steps, n_pipes = run.config["n_eval_steps"], run.config["n_pipes"]
    return ((n_steps - 1) // n_pipes) / n_steps


def _cells(run: StudyRun, **where: object) -> tuple[str, ...]:
    rates = run.numbers(RATE, **where)
    return (
        over_seeds(rates, 3),
        " ".join(f"{rate:.2f}" for rate in rates),
        f"{np.mean(run.numbers(f'{RATE}_with_chance', **where)):.3f}",
        f"{np.mean(run.numbers('cpu_s', **where)):.1f}",
    )


def _in_order(run: StudyRun) -> list[str]:
    return [method for method in LABELS if method in run.methods()]


def _draw_bars(axes: Any, run: StudyRun, sizes: Sequence[int]) -> None:
    methods = _in_order(run)
    width = 0.84 / len(methods)
    for i, method in enumerate(methods):
        for place, size in enumerate(sizes):
            rates = run.numbers(RATE, method=method, n_transitions=size)
            if not rates:
                continue
            x, found = place + width * (i - (len(methods) - 1) / 2), seed_interval(rates)
            label = LABELS[method] if place == 0 else None
            axes.bar(x, found.estimate, 0.9 * width, color=_COLOURS[method], alpha=0.8, label=label)
            error = [[found.estimate - found.low], [found.high - found.estimate]]
            axes.errorbar(x, found.estimate, yerr=error, color=INK, capsize=3, linewidth=1.2)
            axes.plot([x] * len(rates), rates, "o", markersize=3.5, markerfacecolor="white", markeredgecolor=INK)
    axes.set_xticks(range(len(sizes)), [f"m = {size:,}" for size in sizes])
    axes.set_ylabel("reward per step")
    axes.grid(visible=False, axis="x")


def _curves(run: StudyRun, output: Path, panels: Sequence[tuple[str, str]], x_label: str) -> tuple[Section, ...]:
    """Mean over seeds with its interval, one panel for each (title, folder of methods)."""
    path = output / "curves.png"
    with figure(path, 1, len(panels), width=max(5.6, 4.6 * len(panels)), height=4.2, sharey=True) as grid:
        for axes, (title, folder) in zip(grid[0], panels, strict=True):
            for method in _in_order(run):
                by_seed = run.curves.get(f"{folder}/{method}", {})
                _draw_curve(axes, method, [curves[CURVE] for curves in by_seed.values() if CURVE in curves])
            axes.set_title(title)
            axes.set_xlabel(x_label)
        grid[0, 0].set_ylabel("return per step")
        legend_of_all(grid[0, 0], n_columns=1 if len(panels) == 1 else 4)
    caption = "Greedy return per step of an episode while learning: means over seeds with 95 % intervals."
    return (("curves", "While learning", picture(path, alt="Learning curves", caption=caption)),)


def _draw_curve(axes: Any, method: str, by_seed: Sequence[Sequence[tuple[float, float]]]) -> None:
    if not by_seed:
        return
    steps = [step for step, _ in by_seed[0]]
    found = [seed_interval([curve[i][1] for curve in by_seed]) for i in range(len(steps))]
    axes.plot(steps, [x.estimate for x in found], color=_COLOURS[method], label=LABELS[method])
    low, high = [x.low for x in found], [x.high for x in found]
    axes.fill_between(steps, low, high, color=_COLOURS[method], alpha=0.15, linewidth=0)
