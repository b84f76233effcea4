"""Keep the runs of recipes/alfworld in the repository, and the tables of its README equal to them.

python evals/record_alfworld.py --study imitation-900 runs/alfworld/seed-0 runs/alfworld/seed-1    copies, then tables
python evals/record_alfworld.py                                                                    only tables

The records of the games are gzipped; `zcat` shows them.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain.alfworld.games import Split
from posttrain.alfworld.play import GameRecord
from posttrain.evaluation.alfworld_baseline import read_game_records
from posttrain.evaluation.comparison import compare, summarise
from posttrain.evaluation.run_folder import copy_files, seed_folders
from posttrain.evaluation.tables import NOT_APPLICABLE, Table, comparison_table, percent_with_interval, replace_between
from posttrain.provenance import RUN_CARD
from posttrain.schema import AnswerRecord, FinishReason, Grade
from posttrain.training.metrics import METRICS

HERE = Path(__file__).resolve().parent
STUDIES = HERE / "alfworld" / "learning"
README = HERE.parent / "recipes" / "alfworld" / "README.md"
BEGIN, END = "<!-- results: python evals/record_alfworld.py -->", "<!-- end of results -->"
GAMES = "games.jsonl"
COPIED = (
    RUN_CARD,
    "*.summary.json",
    f"*/{METRICS}",
    f"*/{RUN_CARD}",
    f"{GAMES}.*.{RUN_CARD}",
)
SPLITS = (Split.VALID_SEEN, Split.VALID_UNSEEN)
CANDIDATES = 5
GREEDY, BY_VALUE = ("greedy", 1), ("best_of_turns", CANDIDATES)
METHODS = (("sft", GREEDY), ("sft", BY_VALUE), ("oreo", GREEDY), ("oreo", BY_VALUE))
PAIRS = ((2, 0), (1, 0), (3, 2), (3, 0))  # places in METHODS, a against b


def record_run(run: Path, kept: Path) -> None:
    """Copy one seed's run card, what it collected and learned, and the records of its games."""
    copy_files(run, kept, COPIED)
    (kept / f"{GAMES}.gz").write_bytes(gzip.compress((run / GAMES).read_bytes(), mtime=0))


def tables(study: Path) -> str:
    """Games won in one study by each method, seed by seed and over them, then the methods in pairs; by split."""
    by_seed = [read_game_records(folder / f"{GAMES}.gz") for folder in seed_folders(study)]
    records = [record for seed in by_seed for record in seed]
    return "\n".join(part for split in SPLITS for part in _of_split(split, [r for r in records if _split(r) == split]))


def _of_split(split: Split, records: Sequence[GameRecord]) -> Iterator[str]:
    groups = [[r for r in records if _method(r) == method] for method in METHODS]
    n_games = len({r.game_id for r in records})
    yield f"{split}, {n_games} games:\n"
    n_seeds = len({r.seed for r in records})
    header = ("won, %", *(f"seed {seed}" for seed in range(n_seeds)), "all [95 %]", "commands in a won game")
    header += ("turns that did nothing, %", "tokens sampled", "tokens scored")
    rows = [_row(label(*method), group) for method, group in zip(METHODS, groups, strict=True)]
    yield Table(header, tuple(rows)).to_markdown()
    answers = [list(map(as_answer, group)) for group in groups]
    yield comparison_table([compare(answers[a], answers[b]) for a, b in PAIRS]).to_markdown()


def _row(name: str, group: Sequence[GameRecord]) -> tuple[str, ...]:
    found = summarise(list(map(as_answer, group)))
    n_commands = [r.n_steps for r in group if r.is_won]
    n_steps = sum(r.n_steps for r in group)
    return (
        name,
        *(f"{100 * share:.1f}" for _, share in found.by_seed),
        percent_with_interval(found.accuracy),
        f"{sum(n_commands) / len(n_commands):.1f}" if n_commands else NOT_APPLICABLE,
        f"{100 * sum(r.n_inadmissible for r in group) / n_steps:.1f}" if n_steps else NOT_APPLICABLE,
        f"{sum(r.n_sampled_tokens or 0 for r in group) / len(group):,.0f}",
        f"{sum(r.n_scored_tokens or 0 for r in group) / len(group):,.0f}",
    )


def as_answer(record: GameRecord) -> AnswerRecord:
    """A game as an answer to a problem, which the library's paired statistics read."""
    policy, (decoding, budget) = _method(record)
    return AnswerRecord(
        task_id=record.game_id,
        method=f"{policy}/{decoding}",
        seed=record.seed,
        budget=budget,
        text="",
        grade=Grade.CORRECT if record.is_won else Grade.WRONG,
        finish_reason=FinishReason.STOP,
        n_generated_tokens=record.n_sampled_tokens or 0,
        value=None,
    )


def label(policy: str, decoding: tuple[str, int]) -> str:
    return f"{policy}, greedy" if decoding == GREEDY else f"{policy}, best of {decoding[1]} by value"


def _method(record: GameRecord) -> tuple[str, tuple[str, int]]:
    policy, _, rest = record.agent.partition("/")
    return policy, (BY_VALUE if rest.endswith(f"/best_of_{CANDIDATES}") else GREEDY)


def _split(record: GameRecord) -> str:
    return record.game_id.partition("/")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", help="name of the folder of evals/alfworld/learning to copy into")
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, one per seed, in order of the seeds")
    given = parser.parse_args()
    for seed, run in enumerate(given.runs):
        record_run(run, STUDIES / given.study / f"seed-{seed}")
    text = README.read_text(encoding="utf-8")
    made = "\n".join(f"### {study.name}\n\n{tables(study)}" for study in sorted(STUDIES.iterdir()))
    README.write_text(replace_between(text, BEGIN, END, made), encoding="utf-8")


if __name__ == "__main__":
    main()
