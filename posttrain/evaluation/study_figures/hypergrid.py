"""Pictures of the hypergrid study, drawn from its files alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from posttrain.evaluation.figures import PALETTE, figure
from posttrain.evaluation.page import Section, absent, picture
from posttrain.evaluation.run_folder import Curves
from posttrain.evaluation.study_files import ARRAYS, StudyRun, run_dir
from posttrain.evaluation.tables import NOT_APPLICABLE, Table, over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = {  # a row of panels each; trajectory balance stands in all of them, to compare with
    "objectives": ("tb", "fm", "fm_all", "db", "subtb", "vargrad"),
    "trajectory balance, varied": ("tb", "tb_learned_pb", "tb_max_entropy_pb", "tb_explore", "tb_replay"),
    "baselines": ("tb", "mcmc", "mcmc_no_hastings", "mars", "ppo", "soft_ppo"),
}
COSTS = {"eval_states": "states seen", "cpu_s": "CPU seconds"}
MAPS_PER_ROW = 4

Floats = NDArray[np.float64]


def draw(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """All sections of the report; the PNGs are written into `output`."""
    return (
        *(("results", "Results", table.to_html(title)) for title, table in result_tables(run)),
        ("densities", "What is sampled", _densities(run, output / "densities.png")),
        ("tv", "Distance to the reward", _curves(run, "eval_tv", output / "tv.png")),
        ("modes", "Modes found", _curves(run, "eval_modes", output / "modes.png")),
    )


def result_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    """The main table, with its title."""
    grid = "n = {n_dims}, H = {side}, R0 = {reward_floor}, {stop_rule} stops".format_map(run.config)
    return ((f"{grid}: at the end of each run, intervals over seeds", results_table(run)),)


def results_table(run: StudyRun) -> Table:
    """A row for each method: means over seeds, with Student's t interval where there are two or more."""
    header = ("method", "seeds", "TV", "legacy L1", "modes", "states", "updates", "CPU s")
    rows = []
    for method in run.methods():
        tv, l1, modes, states, updates, cpu_s = (
            run.numbers(key, method=method) for key in ("tv", "l1", "modes", "states", "updates", "cpu_s")
        )
        found = f"{min(modes):.0f}" if min(modes) == max(modes) else f"{min(modes):.0f} to {max(modes):.0f}"
        means = (f"{_mean(x):,.0f}" for x in (states, updates, cpu_s))
        legacy = f"{_mean(l1):.1e}" if l1 else NOT_APPLICABLE
        rows.append((method, str(len(tv)), over_seeds(tv, 4, lowest=0), legacy, found, *means))
    return Table(header, tuple(rows))


def _mean(x: Sequence[float]) -> float:
    return sum(x) / len(x)


def _densities(run: StudyRun, path: Path) -> str:
    """The target and, for each method, the distribution of its first seed; grids of two dimensions have them."""
    maps: dict[str, Floats] = {}
    for method in run.methods():
        seed = min(int(row["seed"]) for row in run.rows if row["method"] == method)
        file = run_dir(run.folder, method, seed) / ARRAYS
        if file.exists():
            arrays = load_file(file)
            maps.setdefault("R/Z", arrays["target"])
            maps[method] = arrays["learned"]
    if not maps:
        return absent("Distributions are drawn for grids of two dimensions.")
    n_rows = math.ceil(len(maps) / MAPS_PER_ROW)
    highest = 1.3 * float(np.nanmax(maps["R/Z"]))  # one scale for all; a map that exceeds it is saturated
    with figure(path, n_rows, MAPS_PER_ROW, width=10.5, height=2.75 * n_rows + 0.2) as axes:
        for axis in axes.flat[len(maps) :]:
            axis.set_axis_off()
        for axis, (name, density) in zip(axes.flat, maps.items(), strict=False):
            image = axis.imshow(density.T, origin="lower", cmap="viridis", vmin=0.0, vmax=highest)
            axis.set(title=name if name == "R/Z" else f"{name}\nTV {_tv(density, maps['R/Z']):.4f}")
            axis.grid(visible=False)
            axis.set(xticks=range(0, len(density), 7), yticks=range(0, len(density), 7))
        axes.flat[0].figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, label="probability of a cell")
    caption = "What each method samples at the end of its first seed; white cells cannot be reached. One colour scale."
    return picture(path, alt="Heat maps of learned and true distributions", caption=caption)


def _tv(p: Floats, q: Floats) -> float:
    return float(np.nansum(np.abs(p - q)) / 2)


def _curves(run: StudyRun, key: str, path: Path) -> str:
    groups = {name: [m for m in group if m in run.curves] for name, group in GROUPS.items()}
    groups = {name: group for name, group in groups.items() if set(group) - {"tb"}}
    if not groups:
        return absent("No learning curves are on file.")
    with figure(path, len(groups), 2, width=10.5, height=3.1 * len(groups) + 0.3, sharex="col", sharey=True) as axes:
        for panels, (name, group) in zip(axes, groups.items(), strict=True):
            for axis, (cost, label) in zip(panels, COSTS.items(), strict=True):
                for place, method in enumerate(group):
                    _line(axis, run.curves[method].values(), cost, key, method, PALETTE[place])
                axis.set(xscale="log", xlabel=label, title=name)
            if key == "eval_tv":
                panels[0].set(yscale="log", ylabel="TV to R/Z")
            else:
                panels[0].set(ylim=(0, None), ylabel="modes found")
            panels[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    n_seeds = max(len(curves) for curves in run.curves.values())
    caption = f"Lines are means over {n_seeds} seeds, bands run from the lowest to the highest."
    return picture(path, alt=f"{key.removeprefix('eval_')} by states seen and by CPU seconds", caption=caption)


def _line(axis: Axes, seeds: Iterable[Curves], cost: str, key: str, label: str, colour: str) -> None:
    """The mean over seeds at the steps that all of them evaluated."""
    by_step = [[dict(curves[name]) for name in (cost, key)] for curves in seeds]
    steps = sorted(set.intersection(*(set(x) & set(y) for x, y in by_step)))
    if not steps:
        return
    x, y = (np.array([[seed[place][step] for step in steps] for seed in by_step]) for place in (0, 1))
    axis.plot(x.mean(0), y.mean(0), color=colour, label=label)
    axis.fill_between(x.mean(0), y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0)
