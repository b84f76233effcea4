"""Keep the rounds of `posttrain iterate` in the repository, and the table of recipes/oreo/README.md equal to them.

python evals/record_iterate.py --oreo runs/iterate-{0,1,2} --rejection_sampling runs/iterate_rejection_sampling-{0,1,2}
python evals/record_iterate.py          only makes the table anew
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain.evaluation.records import ANSWERS, load_run_records, read_records, split_method, write_packed_records
from posttrain.evaluation.run_folder import copy_files, seed_folders
from posttrain.evaluation.statistics import seed_interval
from posttrain.evaluation.tables import Table, replace_between
from posttrain.provenance import RUN_CARD
from posttrain.schema import Grade
from posttrain.training.metrics import METRICS

HERE = Path(__file__).resolve().parent
STUDY = HERE / "iterate"
README = HERE.parent / "recipes" / "oreo" / "README.md"
BEGIN, END = "<!-- iterations: python evals/record_iterate.py -->", "<!-- end of iterations -->"
LEARNERS = ("oreo", "rejection_sampling")
DECODINGS = (("greedy", 1), ("sample", 1), ("majority", 16), ("best_of_n", 16))


def record_run(run: Path, kept: Path) -> None:
    """Copy one run's card, what each round sampled and learned, and the answers that the table compares."""
    copy_files(run, kept, (RUN_CARD, "round-*/samples.summary.json", f"round-*/*/{METRICS}"))
    seen: set[tuple[str, str, int]] = set()
    records = []
    for record in read_records(run / ANSWERS):
        key = (record.method, record.task_id, record.budget)
        if (split_method(record.method)[1], record.budget) in DECODINGS and key not in seen:
            seen.add(key)  # of single samples the first of each problem
            records.append(record)
    write_packed_records(kept / f"{ANSWERS}.gz", records)


def iterations_table(study: Path) -> str:
    """Per cent solved after each round, for each seed and over them."""
    rows = [row for learner in LEARNERS for row in _rows(learner, seed_folders(study / learner))]
    n_rounds = len(rows[0]) - 1
    return Table(("correct, %", *(f"round {n}" for n in range(n_rounds))), tuple(rows)).to_markdown()


def _rows(learner: str, seeds: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    by_seed = [load_run_records([folder]) for folder in seeds]
    rounds = sorted({split_method(method)[0] for method, _ in by_seed[0]})
    for decoding, budget in DECODINGS:
        keys = [(f"{name}/{decoding}", budget) for name in rounds]
        solved = [[_solved(answers.get(key)) for key in keys] for answers in by_seed]
        if all(rate is None for rate in solved[0]):  # rejection sampling has no value to choose by
            continue
        for seed, rates in enumerate(solved):
            yield f"{learner}, {decoding} of {budget}, seed {seed}", *("–" if r is None else f"{r:.1f}" for r in rates)
        means = zip(*solved, strict=True)
        yield f"**{learner}, {decoding} of {budget}, mean [95 % over seeds (t)]**", *map(_mean, means)


def _solved(records: Sequence | None) -> float | None:
    if records is None:
        return None
    return 100 * sum(record.grade is Grade.CORRECT for record in records) / len(records)


def _mean(rates: Sequence[float | None]) -> str:
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates):
        return "–"
    at = seed_interval(known)
    return f"**{at.estimate:.1f}** [{at.low:.1f}, {at.high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for learner in LEARNERS:
        parser.add_argument(
            f"--{learner}", nargs="*", type=Path, default=[], help="run folders, in order of the seeds"
        )
    given = vars(parser.parse_args())
    for learner in LEARNERS:
        for seed, run in enumerate(given[learner]):
            record_run(run, STUDY / learner / f"seed-{seed}")
    text = README.read_text(encoding="utf-8")
    README.write_text(replace_between(text, BEGIN, END, iterations_table(STUDY)), encoding="utf-8")


if __name__ == "__main__":
    main()
