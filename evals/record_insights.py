"""Keep the results of recipes/dpo/run_insights.py in the repository, and its README's tables equal to them.

python evals/record_insights.py runs/insights-0 runs/insights-1 runs/insights-2    copies, then makes the tables
python evals/record_insights.py                                                    only makes the tables anew
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from posttrain.evaluation.records import load_run_records
from posttrain.evaluation.run_folder import seed_folders
from posttrain.evaluation.statistics import seed_interval, wilson_interval
from posttrain.evaluation.tables import Table, replace_between, summary_table
from posttrain.training.metrics import METRICS, read_metrics

HERE = Path(__file__).resolve().parent
STUDY = HERE / "insights"
README = HERE.parent / "recipes" / "dpo" / "README.md"
BEGIN, END = "<!-- tables: python evals/record_insights.py -->", "<!-- end of tables -->"
TRAININGS = {
    "untuned": "written pairs, reference not tuned",
    "tuned": "written pairs, reference tuned on the chosen",
    "own_pairs": "own pairs, reference not tuned",
}
KEPT = ("run.json", "answers.jsonl", "credit.json", *(f"{name}/{METRICS}" for name in TRAININGS))
REWARDS = {
    "chosen": "chosen answers",
    "rejected": "rejected answers",
    "reference_samples": "fresh samples of the reference",
    "reference_samples_stderr": "their standard error",
    "reference_samples_exact": "-beta KL(reference, policy) along them",
}


def record_run(run: Path, kept: Path) -> None:
    """Copy one seed's run card, answers, learning curves and ranks."""
    for name in KEPT:
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / name, kept / name)


def insights_tables(study: Path) -> str:
    """The README's three tables."""
    folders = [folder for folder in seed_folders(study) if (folder / "credit.json").is_file()]
    if not folders:
        return "No run is recorded yet.\n"
    parts = (
        ("Searches", summary_table(load_run_records(folders), start_method="dpo/greedy")),
        ("Implicit rewards at the last log of the training", rewards_table(folders)),
        ("Credit of a bad token", credit_table(folders)),
    )
    return "\n".join(f"**{title}**\n\n{table.to_markdown()}" for title, table in parts)


def rewards_table(folders: Sequence[Path]) -> Table:
    """Implicit rewards of the pairs and, where they were tracked, of the fresh samples, for each training."""
    rows = []
    for name, training in TRAININGS.items():
        last = [[r for r in read_metrics(f / name / METRICS) if "rewards/chosen" in r][-1] for f in folders]
        for key, what in REWARDS.items():
            if all(f"rewards/{key}" in row for row in last):
                by_seed = [row[f"rewards/{key}"] for row in last]
                rows.append((f"{training}: {what}", *(f"{x:+.3f}" for x in by_seed), _over_seeds(by_seed)))
    return Table(("training: reward on", *_seeds(folders), "mean, 95 % interval over seeds (t)"), tuple(rows))


def credit_table(folders: Sequence[Path]) -> Table:
    """How often a bad token has the lowest number of its answer; beside it chance."""
    found = [json.loads((folder / "credit.json").read_text(encoding="utf-8")) for folder in folders]
    rows = []
    for kind in found[0]:
        for name in found[0][kind]["ranks"]:
            ranks = [seed[kind]["ranks"][name] for seed in found]
            mean = _over_seeds([own.count(0) / len(own) for own in ranks], scale=100, digits=1)
            rows.append((f"{kind}: {name}", *map(_rate, ranks), mean))
        chance = [100 / seed[kind]["n_tokens"] for seed in found]
        rows.append((f"{kind}: chance", *(f"{x:.1f}" for x in chance), f"{sum(chance) / len(chance):.1f}"))
    header = ("solutions in which it is the lowest, %", *_seeds(folders), "mean, 95 % interval over seeds (t)")
    return Table(header, tuple(rows))


def _seeds(folders: Sequence[Path]) -> tuple[str, ...]:
    return tuple(f"seed {n}" for n in range(len(folders)))


def _rate(ranks: Sequence[int]) -> str:
    at = wilson_interval(ranks.count(0), len(ranks))
    return f"{100 * at.estimate:.1f} [{100 * at.low:.1f}, {100 * at.high:.1f}]"


def _over_seeds(by_seed: Sequence[float], *, scale: float = 1.0, digits: int = 3) -> str:
    mean = scale * sum(by_seed) / len(by_seed)
    if len(by_seed) == 1:
        return f"{mean:.{digits}f}"
    at = seed_interval([scale * number for number in by_seed])
    return f"{mean:.{digits}f} [{at.low:.{digits}f}, {at.high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, one per seed, in order of the seeds")
    runs = parser.parse_args().runs
    for seed, run in enumerate(runs):
        record_run(run, STUDY / f"seed-{seed}")
    text = README.read_text(encoding="utf-8")
    README.write_text(replace_between(text, BEGIN, END, insights_tables(STUDY)), encoding="utf-8")


if __name__ == "__main__":
    main()
