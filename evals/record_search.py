"""Keep the search study in the repository, and the tables and the picture of evals/search/README.md equal to it.

python evals/record_search.py runs/search/seed-{0,1,2}     copies cards and answers, then makes tables and picture
python evals/record_search.py                              only makes them anew
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from posttrain.evaluation.budget_curves import BudgetPoint
from posttrain.evaluation.comparison import compare, summarise
from posttrain.evaluation.plots import plot_accuracy_by_compute
from posttrain.evaluation.records import ANSWERS, load_run_records, read_records, split_method, write_packed_records
from posttrain.evaluation.run import CARDS
from posttrain.evaluation.run_folder import copy_files, seed_folders
from posttrain.evaluation.tables import (
    NOT_APPLICABLE,
    Table,
    percent_interval,
    percent_with_interval,
    points_with_interval,
    replace_between,
)
from posttrain.provenance import RUN_CARD
from posttrain.schema import AnswerRecord

Answers = Mapping[tuple[str, int], Sequence[AnswerRecord]]

STUDY = Path(__file__).resolve().parent / "search"
README = STUDY / "README.md"
BEGIN, END = "<!-- search: python evals/record_search.py -->", "<!-- end of search -->"
SEEDS = 3
SEARCHES = ("beam", "dvts", "value_rerank")
BASELINES = ("best_of_n", "majority")


def record_run(run: Path, kept: Path) -> None:
    """Copy the run cards and the answers; of single samples the first of each problem."""
    copy_files(run, kept, [f"{CARDS}/*/{RUN_CARD}"])
    seen: set[tuple[str, str, int]] = set()
    records = []
    for record in read_records(run / ANSWERS):
        key = (record.method, record.task_id, record.budget)
        if key not in seen:
            seen.add(key)
            records.append(record)
    write_packed_records(kept / f"{ANSWERS}.gz", records)


def compute_table(answers: Answers) -> Table:
    """Every method: what it solved, over which seeds, and what it cost; cheapest first."""
    rows = []
    for (method, budget), records in answers.items():
        summary = summarise(records)
        cells = (
            f"{method}, n = {budget}",
            str(len(summary.by_seed)),
            f"{summary.tokens_per_answer:.1f}",
            f"{np.mean([record.n_value_calls for record in records]):.1f}",
            percent_with_interval(summary.accuracy),
            percent_interval(summary.over_seeds) if summary.over_seeds else NOT_APPLICABLE,
            "; ".join(f"{100 * accuracy:.1f}" for _, accuracy in summary.by_seed),
        )
        rows.append((split_method(method)[0], summary.tokens_per_answer, cells))
    header = ("method", "seeds", "tokens", "value calls", "correct %, 95 % interval", "over seeds (t)", "by seed")
    return Table(header, tuple(cells for *_, cells in sorted(rows)))


def equal_compute_table(answers: Answers) -> Table:
    """Each search less the cheapest best-of-n and majority of the same policy that had at least as many tokens."""
    rows = []
    for (method, budget), records in sorted(answers.items()):
        policy, how = split_method(method)
        if how not in SEARCHES or f"{policy}/majority" not in {name for name, _ in answers}:
            continue
        cells = [f"{method}, n = {budget}", f"{_tokens(records):.0f}"]
        for baseline in BASELINES:
            found = _cheapest_above(answers, f"{policy}/{baseline}", records)
            if found is None:
                cells += [NOT_APPLICABLE, NOT_APPLICABLE]
                continue
            difference = compare(records, found).difference
            cells += [f"n = {found[0].budget}, {_tokens(found):.0f}", points_with_interval(difference)]
        rows.append(tuple(cells))
    header = ["search", "tokens"]
    for baseline in BASELINES:
        header += [f"{baseline}: n, tokens", "points over it, 95 %"]
    return Table(tuple(header), tuple(rows))


def _cheapest_above(answers: Answers, method: str, records: Sequence[AnswerRecord]) -> Sequence[AnswerRecord] | None:
    """The answers of `method` with the fewest tokens that are as many as the search's, on the same seeds."""
    seeds = {record.seed for record in records}
    of_seeds = [
        [record for record in own if record.seed in seeds]
        for (name, _), own in answers.items()
        if name == method and seeds <= {record.seed for record in own}
    ]
    enough = [own for own in of_seeds if _tokens(own) >= _tokens(records)]
    return min(enough, key=_tokens) if enough else None


def _tokens(records: Sequence[AnswerRecord]) -> float:
    return float(np.mean([record.n_generated_tokens for record in records]))


def _points(answers: Answers, policy: str) -> Iterator[BudgetPoint]:
    """What all seeds have run, but for single samples."""
    for (method, budget), records in answers.items():
        summary = summarise(records)
        name, how = split_method(method)
        if name == policy and how != "sample" and len(summary.by_seed) == SEEDS:
            yield BudgetPoint(method, budget, summary.tokens_per_answer, summary.accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, one per seed, in order of the seeds")
    for seed, run in enumerate(parser.parse_args().runs):
        record_run(run, STUDY / f"seed-{seed}")
    answers = load_run_records(seed_folders(STUDY))
    for policy in ("sft_by_value", "oreo"):
        plot_accuracy_by_compute(tuple(_points(answers, policy)), STUDY / f"{policy}.png")
    tables = (
        f"{compute_table(answers).to_markdown()}\nAt equal tokens:\n\n{equal_compute_table(answers).to_markdown()}"
    )
    text = README.read_text(encoding="utf-8")
    README.write_text(replace_between(text, BEGIN, END, tables), encoding="utf-8")


if __name__ == "__main__":
    main()
