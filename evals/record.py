"""Keep a study's results in the repository, and the README's table equal to them.

    python evals/record.py runs/seed-0 runs/seed-1 runs/seed-2    copies what the tables are made of, then the tables
    python evals/record.py                                        only makes the tables anew

Single samples are left out: they are many megabytes, and the tables need what was chosen from them, not them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from posttrain.evaluation.records import append_records, load_run_records, read_records, split_method
from posttrain.evaluation.run_folder import seed_folders
from posttrain.evaluation.tables import Table, summary_table
from posttrain.schema import Grade

HERE = Path(__file__).resolve().parent
STUDY = HERE / "quickstart"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- quickstart tables: python evals/record.py -->", "<!-- end of quickstart tables -->"
SEARCHED = {("majority", 16), ("best_of_n", 4), ("best_of_n", 16), ("beam", 4), ("beam", 16)}  # of the OREO policy
METRICS = ("sft", "rejection_sampling", "dpo", "oreo")


def record_run(run: Path, kept: Path) -> None:
    """Copy one seed's run card, learning curves and the answers that the tables compare."""
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "run.json", kept / "run.json")
    for stage in METRICS:
        (kept / stage).mkdir(exist_ok=True)
        shutil.copy(run / stage / "metrics.jsonl", kept / stage / "metrics.jsonl")
    answers = kept / "answers.jsonl"
    answers.unlink(missing_ok=True)
    append_records(answers, [r for r in read_records(run / "answers.jsonl") if is_kept(r.method, r.budget)])


def is_kept(method: str, budget: int) -> bool:
    policy, decoding = split_method(method)
    return decoding == "greedy" or (policy == "oreo" and (decoding, budget) in SEARCHED)


def quickstart_tables() -> str:
    """The README's two tables: accuracy by seed, and every method kept with all seeds pooled and intervals."""
    pooled = summary_table(load_run_records(seed_folders(STUDY)), start_method="sft/greedy").to_markdown()
    return f"{seed_table()}\n{pooled}"


def seed_table() -> str:
    """Per cent solved by each method under each seed."""
    by_seed = [load_run_records([folder]) for folder in seed_folders(STUDY)]
    rows = []
    for method, budget in by_seed[0]:
        solved = [[record.grade is Grade.CORRECT for record in records[method, budget]] for records in by_seed]
        rows.append((f"{method}, n = {budget}", *(f"{100 * sum(grades) / len(grades):.1f}" for grades in solved)))
    return Table(("correct, %", *(f"seed {seed}" for seed in range(len(by_seed)))), tuple(rows)).to_markdown()


def readme_with(tables: str, text: str) -> str:
    """`text` with what stands between the marks replaced by `tables`."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, one per seed, in order of the seeds")
    runs = parser.parse_args().runs
    for seed, run in enumerate(runs):
        record_run(run, STUDY / f"seed-{seed}")
    README.write_text(readme_with(quickstart_tables(), README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
