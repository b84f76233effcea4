"""Keep a study's results in the repository, and the README's table equal to them.

    python evals/record.py runs/seed-0 runs/seed-1 runs/seed-2    copies what the tables are made of, then the tables
    python evals/record.py                                        only makes the tables anew

Of the samples of a problem the first is kept: all of them are many megabytes, and the tables need what was chosen from
them.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from posttrain.evaluation.records import append_records, load_run_records, read_records, split_method
from posttrain.evaluation.run_folder import seed_folders
from posttrain.evaluation.tables import summary_table
from posttrain.schema import AnswerRecord

HERE = Path(__file__).resolve().parent
STUDY = HERE / "quickstart"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- quickstart table: python evals/record.py -->", "<!-- end of quickstart table -->"
KEPT_DECODINGS = {"greedy", "sample", "majority", "best_of_n", "beam"}
KEPT_BUDGETS = (1, 4, 16)
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
    append_records(answers, kept_records(read_records(run / "answers.jsonl")))


def kept_records(records: Iterable[AnswerRecord]) -> list[AnswerRecord]:
    """The tables' methods, with one record per problem and method."""
    first: dict[tuple[str, str, int], AnswerRecord] = {}
    for record in records:
        if split_method(record.method)[1] in KEPT_DECODINGS and record.budget in KEPT_BUDGETS:
            first.setdefault((record.method, record.task_id, record.budget), record)
    return list(first.values())


def quickstart_table() -> str:
    """The README's table: every method kept, all seeds pooled, with intervals."""
    return summary_table(load_run_records(seed_folders(STUDY)), start_method="sft/greedy").to_markdown()


def readme_with(table: str, text: str) -> str:
    """`text` with what stands between the marks replaced by `table`."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, one per seed, in order of the seeds")
    runs = parser.parse_args().runs
    for seed, run in enumerate(runs):
        record_run(run, STUDY / f"seed-{seed}")
    README.write_text(readme_with(quickstart_table(), README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
