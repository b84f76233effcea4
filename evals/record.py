"""Keep a study's results in the repository, and the tables of the READMEs equal to them.

    python evals/record.py runs/seed-0 runs/seed-1 runs/seed-2    copies what the tables are made of, then the tables
    python evals/record.py                                        only makes the tables anew

Of single samples the first of each problem is kept: all would be many megabytes, and the tables need what was chosen
from them, not them. The answers are gzipped; `zcat` shows them.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from posttrain.evaluation.records import (
    ANSWERS,
    load_run_records,
    read_records,
    split_method,
    write_packed_records,
)
from posttrain.evaluation.run_folder import seed_folders
from posttrain.evaluation.tables import Table, replace_between, summary_table
from posttrain.schema import AnswerRecord, Grade

MethodRecords = Mapping[tuple[str, int], Sequence[AnswerRecord]]  # (method, budget) -> its answers

HERE = Path(__file__).resolve().parent
STUDY = HERE / "quickstart"
ROOT = HERE.parent
SEARCHED = {
    ("majority", 16),
    ("best_of_n", 4),
    ("best_of_n", 16),
    ("beam", 4),
    ("beam", 16),
}  # with OREO's value model
QUICKSTART = ("sft", "sft_by_value", "rejection_sampling", "dpo", "oreo")
TABLE_1 = ("sft", "rejection_sampling", "kto", "dpo", "oreo_response", "oreo_step", "oreo")
MARKS = {  # README -> what its tables stand between
    "README.md": ("<!-- quickstart tables: python evals/record.py -->", "<!-- end of quickstart tables -->"),
    "recipes/oreo/README.md": ("<!-- table 1: python evals/record.py -->", "<!-- end of table 1 -->"),
}


def record_run(run: Path, kept: Path) -> None:
    """Copy one seed's run card, learning curves and the answers that the tables compare."""
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "run.json", kept / "run.json")
    for policy in TABLE_1:
        if (run / policy).is_dir():
            (kept / policy).mkdir(exist_ok=True)
            shutil.copy(run / policy / "metrics.jsonl", kept / policy / "metrics.jsonl")
    write_packed_records(kept / f"{ANSWERS}.gz", kept_records(read_records(run / ANSWERS)))


def kept_records(records: Iterable[AnswerRecord]) -> list[AnswerRecord]:
    """Greedy answers, each problem's first sample, and what was searched with OREO's value model.

    sft_by_value is the imitator beside that model: its greedy answers and samples are those of sft.
    """
    kept: list[AnswerRecord] = []
    sampled: set[tuple[str, str]] = set()
    for record in records:
        policy, decoding = split_method(record.method)
        place = (record.method, record.task_id)
        is_first_sample = decoding == "sample" and place not in sampled
        if decoding == "sample":
            sampled.add(place)
        is_searched = policy in ("oreo", "sft_by_value") and (decoding, record.budget) in SEARCHED
        if is_searched or (policy != "sft_by_value" and (decoding == "greedy" or is_first_sample)):
            kept.append(record)
    return kept


def tables(readme: str) -> str:
    """The tables of one README: accuracy by seed, and all seeds pooled with intervals."""
    policies = QUICKSTART if readme == "README.md" else TABLE_1
    decodings = {"greedy", "sample"} | ({how for how, _ in SEARCHED} if policies == QUICKSTART else set())
    by_seed = [of_policies(load_run_records([folder]), policies, decodings) for folder in seed_folders(STUDY)]
    pooled = of_policies(load_run_records(seed_folders(STUDY)), policies, decodings)
    return f"{seed_table(by_seed)}\n{summary_table(pooled, start_method='sft/greedy').to_markdown()}"


def of_policies(records: MethodRecords, policies: Collection[str], decodings: Collection[str]) -> MethodRecords:
    return {
        (method, budget): found
        for (method, budget), found in records.items()
        if split_method(method)[0] in policies and split_method(method)[1] in decodings
    }


def seed_table(by_seed: Sequence[MethodRecords]) -> str:
    """Per cent solved by each method under each seed."""
    rows = []
    for method, budget in by_seed[0]:
        solved = [[record.grade is Grade.CORRECT for record in records[method, budget]] for records in by_seed]
        rows.append((f"{method}, n = {budget}", *(f"{100 * sum(grades) / len(grades):.1f}" for grades in solved)))
    return Table(("correct, %", *(f"seed {seed}" for seed in range(len(by_seed)))), tuple(rows)).to_markdown()


def readme_with(readme: str, text: str) -> str:
    """`text` of a README with what stands between its marks made anew."""
    return replace_between(text, *MARKS[readme], tables(readme))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, one per seed, in order of the seeds")
    runs = parser.parse_args().runs
    for seed, run in enumerate(runs):
        record_run(run, STUDY / f"seed-{seed}")
    for readme in MARKS:
        path = ROOT / readme
        path.write_text(readme_with(readme, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
