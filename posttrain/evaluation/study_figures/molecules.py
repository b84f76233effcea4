"""The report of `posttrain control molecules`: the table, the search's course, the best molecules of every method."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from posttrain.control.molecules.pictures import draw_grid
from posttrain.evaluation.figures import PALETTE, figure, legend_below
from posttrain.evaluation.page import Section, absent, paragraph, picture
from posttrain.evaluation.study_files import StudyRun, run_dir
from posttrain.evaluation.tables import Table, over_seeds

BEST = "best.jsonl"
N_COLUMNS, N_ROWS, CELL_PX = 6, 2, 240
LABELS = {
    "tb": "GFlowNet, TB",
    "tb_replay": "GFlowNet, TB with replay",
    "fm": "GFlowNet, FM",
    "mars": "MARS",
    "ppo": "PPO",
    "random": "random",
}
_COLUMNS = (  # key of results.jsonl, heading, digits
    ("n_distinct", "different molecules", 0),
    ("top_10", "top 10", 2),
    ("top_100", "top 100", 2),
    ("top_1000", "top 1,000", 2),
    ("tanimoto_top_100", "Tanimoto of top 100", 3),
    ("n_scaffolds", "scaffolds above T", 0),
    ("n_modes", "modes above T", 0),
    ("cpu_s", "CPU s", 0),
)


def draw(run: StudyRun, output: Path) -> tuple[Section, ...]:
    """The sections of the page; writes search.png, diversity.png and best_<method>.png into `output`."""
    if not run.rows:
        return (("results", "Results", absent("No method has finished yet.")),)
    return (
        ("results", "Results", _results(run)),
        ("search", "Score against molecules evaluated", _search(run, output)),
        ("diversity", "Diversity against score", _diversity(run, output)),
        ("best", "The best molecules", _best(run, output)),
    )


def result_tables(run: StudyRun) -> tuple[tuple[str, Table], ...]:
    """Titles and tables of the main results."""
    return (("Means over seeds, with 95 % intervals where there are several", results_table(run)),)


def results_table(run: StudyRun) -> Table:
    """Means over seeds, with Student's t interval where there are several."""
    rows = [
        (_label(method), *(over_seeds(run.numbers(key, method=method), n, lowest=0) for key, _, n in _COLUMNS))
        for method in run.methods()
    ]
    return Table(("method", *(heading for _, heading, _ in _COLUMNS)), tuple(rows))


def _results(run: StudyRun) -> str:
    unit = "sEH proxy, 8 for −13 kcal/mol" if run.config["reward"] == "seh" else run.config["reward"]
    text = (
        f"Scores are those of the reward ({unit}) before floor and exponent; T is {run.config['threshold']}. Every "
        "method had the same number of molecules evaluated, repeats included. Tanimoto is the mean similarity of all "
        "pairs of the 100 best: lower is more diverse. Modes are molecules above T with a similarity below 0.7 to all "
        "better ones. Brackets are 95 % intervals over seeds (Student's t)."
    )
    return paragraph(text) + results_table(run).to_html("Means over seeds")


def _search(run: StudyRun, output: Path) -> str:
    path = output / "search.png"
    with figure(path, 1, 2, width=9.6, height=4.2) as axes:
        for place, method in enumerate(run.methods()):
            for key, axis in zip(("eval_top_100", "eval_n_modes"), axes[0], strict=True):
                x, y = _mean_curve(run, method, key)
                axis.plot(x, y, color=_colour(place), label=_label(method))
        for axis, heading in zip(axes[0], ("mean score of the 100 best", "modes above T"), strict=True):
            axis.set_xlabel("molecules evaluated")
            axis.set_title(heading)
        axes[0][1].set_yscale("symlog", linthresh=1.0)  # from none to thousands
        axes[0][1].set_ylim(bottom=0.0)
        legend_below(axes[0][0], n_columns=3)
    return picture(path, alt="Score and modes against molecules evaluated", caption="Means over seeds.")


def _diversity(run: StudyRun, output: Path) -> str:
    path = output / "diversity.png"
    with figure(path, 1, 1, width=6.0, height=4.6) as axes:
        axis = axes[0][0]
        for place, method in enumerate(run.methods()):
            score, similarity = (run.numbers(key, method=method) for key in ("top_100", "tanimoto_top_100"))
            axis.scatter(score, similarity, color=_colour(place), label=_label(method), s=42)
        axis.set_xlabel("mean score of the 100 best")
        axis.set_ylabel("their mean Tanimoto similarity")
        legend_below(axis)
    caption = "A point per seed. Right is better, low is more diverse."
    return picture(path, alt="Similarity of the 100 best against their score", caption=caption)


def _best(run: StudyRun, output: Path) -> str:
    parts: list[str] = []
    for method in run.methods():
        seed = min(int(row["seed"]) for row in run.rows if row["method"] == method)
        source = run_dir(run.folder, method, seed) / BEST
        if not source.exists():
            parts.append(absent(f"{_label(method)}: {source.relative_to(run.folder)} is not there."))
            continue
        rows = _read_best(source)[: N_COLUMNS * N_ROWS]
        legends = [f"{row['score']:.2f}" for row in rows]
        smiles = [row["smiles"] for row in rows]
        path = draw_grid(output / f"best_{method}.png", smiles, legends, n_columns=N_COLUMNS, cell_px=CELL_PX)
        alt = f"The {len(rows)} best molecules of {_label(method)}"
        parts.append(picture(path, alt=alt, caption=f"{_label(method)}, seed {seed}, with their scores."))
    return "".join(parts)


def _read_best(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _mean_curve(run: StudyRun, method: str, key: str) -> tuple[list[float], list[float]]:
    """Molecules evaluated, and the mean of `key` over the seeds that have it, at the steps that all of them have."""
    of_seeds = [curves for curves in run.curves.get(method, {}).values() if key in curves]
    if not of_seeds:
        return [], []
    evaluated = dict(of_seeds[0]["eval_n_evaluated"])
    points = [dict(curves[key]) for curves in of_seeds]
    steps = sorted(set.intersection(*(set(of_seed) for of_seed in points)) & set(evaluated))
    return [evaluated[step] for step in steps], [math.fsum(p[step] for p in points) / len(points) for step in steps]


def _label(method: str) -> str:
    return LABELS.get(method, method)


def _colour(place: int) -> str:
    return PALETTE[place % len(PALETTE)]
