"""Pictures of the study of integral reinforcement learning, drawn from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from posttrain.evaluation.figures import INK, PALETTE, figure, legend_of_all
from posttrain.evaluation.page import Section, paragraph, picture
from posttrain.evaluation.study_figures.intrl_tables import (
    EXAMPLES,
    calibration_table,
    curve,
    errors_table,
    euler_table,
    first_figure_table,
    methods_of,
    newton_table,
    node_counts,
    slopes_table,
)
from posttrain.evaluation.study_files import ARRAYS, StudyRun, run_dir

MARKERS = "osD^vPX*"
# |ω − ω*| that the paper's authors saved for Example 1, Bayesian quadrature with 5, 7, 9 and 15 samples.
RECORDED_COUNTS, RECORDED_ERRORS = (5, 7, 9, 15), (5.706e-5, 1.538e-5, 7.679e-6, 3.315e-6)


def draw(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """All sections of the report; the PNGs are written into `output`."""
    tables = errors_table(run, of="from_data").to_html("|ω − ω*| of Example 1, by the Stein equation")
    slopes = slopes_table(run, of="from_data").to_html("Slopes of log error in log (N − 1); intervals over seeds")
    first = first_figure_table(run).to_html("10³ (J(u) − J*) from (−100, 100), J* = 15000, by iteration")
    sections = [
        ("convergence", "Convergence", _slopes(run, output / "slopes.png") + slopes + tables),
        ("gaps", "What the learner believes and what its policy costs", _gaps(run, output / "gaps.png")),
        ("portraits", "Phase portraits of Example 2", _portraits(run, output / "portraits.png") + first),
        ("newton", "Policy iteration and Newton's method", newton_table(run).to_html("Example 1")),
        ("euler", "Cart-pole", euler_table(run).to_html("Policies optimal for Euler's steps, on the linear plant")),
    ]
    if methods_of(run, "calibration"):
        bars = calibration_table(run).to_html("Bayesian quadrature's error bars, by segment")
        grid = errors_table(run, of="data_free").to_html("All rules")
        sections.append(("jitter", "Jitter and lengthscale", _jitter(run, output / "jitter.png") + grid))
        sections.append(("calibration", "Error bars", bars))
    if methods_of(run, "irregular"):
        sections.append(("irregular", "Samples at random times", _irregular(run, output / "irregular.png")))
    return tuple(sections)


def _slopes(run: StudyRun, path: Path) -> str:
    counts, methods = node_counts(run, "from_data"), methods_of(run, "from_data")
    with figure(path, 1, 2, width=10.5, height=5.6, sharey=True) as axes:
        for axis, (system, title) in zip(axes[0], EXAMPLES.items(), strict=True):
            for place, method in enumerate(methods):
                errors = curve(run, "omega_error", counts, experiment="from_data", method=method, system=system)
                _line(axis, counts, errors, place, method)
            for slope, top in ((-2, 3e-3), (-4, 2e-6)):
                _theory_line(axis, counts, top, slope)
            _log_log(axis, counts, title)
        axes[0, 0].set_ylabel("|ω − ω*|")
        legend_of_all(axes[0, 0], n_columns=2)
    caption = "Errors of the learned value against intervals, means over seeds; thin lines have slopes −2 and −4."
    return picture(path, alt="Errors of eight rules on log-log axes", caption=caption)


def _gaps(run: StudyRun, path: Path) -> str:
    counts, methods = node_counts(run, "from_data"), methods_of(run, "from_data")
    shown = [method for method in methods if method == "trapezoid" or "jitter=1e-08" in method or method == "simpson"]
    with figure(path, 1, 2, width=10.5, height=4.8, sharey=True) as axes:
        for axis, (system, title) in zip(axes[0], EXAMPLES.items(), strict=True):
            for place, method in enumerate(shown):
                for key, dash in (("estimated_gap", "--"), ("true_gap", "-")):
                    gaps = curve(run, key, counts, experiment="from_data", method=method, system=system)
                    label = f"{method}: {key.replace('_gap', '')}"
                    _line(axis, counts, np.abs(gaps), place, label, dash=dash)
            _log_log(axis, counts, title)
        axes[0, 0].set_ylabel("gap, start of unit covariance")
        legend_of_all(axes[0, 0], n_columns=3)
    caption = (
        "Dashed: |tr(P − P*)|, which the paper calls J − J* (it multiplies by 10⁴). Solid: what the learned policy "
        "costs above the optimum. The policy is better than its learner believes, by the square."
    )
    return picture(path, alt="Estimated and true cost gaps", caption=caption)


def _jitter(run: StudyRun, path: Path) -> str:
    counts = node_counts(run, "data_free")
    where: dict[str, Any] = {"experiment": "data_free", "b": 4, "mean": "zero"}
    rows = [row for row in run.rows if all(row.get(key) == value for key, value in where.items())]
    jitters, lengths = (sorted({row[key] for row in rows}) for key in ("jitter", "lengthscale"))
    with figure(path, 1, 2, width=10.5, height=4.6, sharey=True) as axes:
        left, right = axes[0]
        for place, jitter in enumerate(jitters):
            errors = curve(run, "omega_error", counts, **where, lengthscale=lengths[0], jitter=jitter)
            _line(left, counts, errors, place, f"jitter {jitter:g}")
            ends = [row for row in rows if row["jitter"] == jitter and row["n_nodes"] == counts[-1]]
            points = sorted((row["lengthscale"], row["omega_error"]) for row in ends)
            right.plot(*zip(*points, strict=True), marker=MARKERS[place], color=PALETTE[place])
        recorded = np.asarray(RECORDED_COUNTS) - 1
        left.plot(recorded, RECORDED_ERRORS, "x", color=INK, markersize=9, label="recorded by the paper's authors")
        _log_log(left, counts, f"b = 4, lengthscale {lengths[0]:g} s, zero mean")
        right.set(xscale="log", title=f"b = 4, N = {counts[-1]}", xlabel="lengthscale, s")
        right.set_xticks(lengths, [f"{at:g}" for at in lengths])
        right.minorticks_off()
        left.set_ylabel("|ω − ω*|, Example 1, data-free")
        left.legend()
    caption = "A jitter of 1e-8 sets the rate that the paper's code observed, and hurts long lengthscales most."
    return picture(path, alt="Error with and without jitter", caption=caption)


def _irregular(run: StudyRun, path: Path) -> str:
    counts = node_counts(run, "irregular")
    with figure(path, 1, 1, width=7.0, height=4.8) as axes:
        for place, method in enumerate(methods_of(run, "irregular")):
            errors = curve(run, "omega_error", counts, experiment="irregular", method=method)
            _line(axes[0, 0], counts, errors, place, method)
        _log_log(axes[0, 0], counts, "Example 1, data-free, random sample times")
        axes[0, 0].set_ylabel("|ω − ω*|, geometric mean over draws")
        axes[0, 0].legend()
    caption = "Simpson and Gauss-Legendre cannot read such samples; Bayesian quadrature needs no change for them."
    return picture(path, alt="Errors with irregular samples", caption=caption)


def _portraits(run: StudyRun, path: Path) -> str:
    arrays = load_file(run_dir(run.folder, "portraits", 0) / ARRAYS)
    names = [key.removesuffix("/paths") for key in arrays if key.endswith("/paths")]
    names.sort(key=lambda name: -float(arrays[f"{name}/input_error"].mean()))
    axis, floor = arrays["axis"], -8.0
    with figure(path, 1, len(names), width=3.9 * len(names), height=4.4, sharey=True) as axes:
        image = None
        for panel, name in zip(axes[0], names, strict=True):
            error = np.log10(np.maximum(arrays[f"{name}/input_error"], 10**floor))
            image = panel.pcolormesh(axis, axis, error, vmin=floor, vmax=1.0, cmap="Blues", shading="gouraud")
            velocity = np.moveaxis(arrays[f"{name}/velocity"], -1, 0)
            panel.streamplot(axis, axis, *velocity, color="#8A8A8A", linewidth=0.6, density=0.7)
            for states in arrays[f"{name}/paths"]:
                panel.plot(states[:, 0], states[:, 1], color=PALETTE[1], linewidth=1.4)
            limits = (float(axis[0]), float(axis[-1]))
            panel.set(title=_two_lines(name), xlabel="x₁", xlim=limits, ylim=limits, aspect="equal")
            panel.grid(False)
        axes[0, 0].set_ylabel("x₂")
        axes[0, 0].figure.colorbar(image, ax=list(axes[0]), label="log₁₀ |u − u*|", shrink=0.8)
    caption = "Flow of the closed loop, eight paths, and how far the input is from the optimal one."
    return picture(path, alt="Phase portraits of learned controllers", caption=caption) + paragraph(
        "With two samples a zero-mean Gaussian process is far worse than the trapezoid; three samples of a long "
        "lengthscale with a constant mean are better than both."
    )


def _line(axis: Any, counts: list[int], errors: Any, place: int, label: str, *, dash: str = "-") -> None:
    colour = PALETTE[place % len(PALETTE)]
    intervals = np.asarray(counts) - 1
    axis.plot(intervals, errors, dash, marker=MARKERS[place % len(MARKERS)], color=colour, markersize=5, label=label)


def _theory_line(axis: Any, counts: list[int], first: float, slope: int) -> None:
    intervals = np.asarray(counts, dtype=np.float64) - 1
    line = first * (intervals / intervals[0]) ** slope
    axis.plot(intervals, line, color=INK, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
    axis.annotate(f"slope {slope}", (intervals[1], line[1]), xytext=(2, 4), textcoords="offset points", fontsize=9)


def _log_log(axis: Any, counts: list[int], title: str) -> None:
    axis.set(xscale="log", yscale="log", title=title, xlabel="intervals, N − 1")
    axis.set_xticks([n - 1 for n in counts], [str(n - 1) for n in counts])
    axis.minorticks_off()


def _two_lines(name: str) -> str:
    return name.replace(" mean=", "\nmean=")
