"""`posttrain search`: search for an answer to every problem of a file, by several algorithms, one record each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from posttrain.evaluation.decoding import Sampled, parse_decoding
from posttrain.evaluation.eval_config import AskConfig, EvalConfig, output_of
from posttrain.evaluation.records import group_records, split_method
from posttrain.evaluation.run import answer_problems
from posttrain.evaluation.statistics import wilson_interval
from posttrain.evaluation.tables import NOT_APPLICABLE, Table, percent_with_interval
from posttrain.schema import AnswerRecord, FinishReason, Grade


@dataclass(frozen=True)
class SearchConfig(AskConfig):
    """What to search for, with which networks, and how.

    Problems are JSON lines: {"question": ...}, {"prompt": ...} (the exact text that the policy continues), or any
    problems of `posttrain eval run`, whose answers are graded. A run that was stopped goes on where it was.
    """

    algorithm: tuple[str, ...] = field(
        default=("greedy",),
        metadata={
            "help": "any of: greedy, best_of_n:N, majority:N, weighted_majority:N, beam:WxE and dvts:WxE (step by "
            "step, by value), likelihood:B, log_ratio:B and value_rerank:BxK (token by token)"
        },
    )
    output: str | None = field(
        default=None,
        metadata={"help": "answers are added to this .jsonl file; default: runs/search/<problems>/answers.jsonl"},
    )
    reader: str | None = field(
        default="final_number", metadata={"help": "grader that reads the answers to rows without a known one"}
    )


def search(config: SearchConfig) -> None:
    """Write one record per problem and algorithm, and print what each algorithm solved and what it cost.

    Raises ValueError for `sample:N`, which is many answers to a problem.
    """
    for text in config.algorithm:
        if isinstance(parse_decoding(text), Sampled):
            raise ValueError(f"{text} draws many answers, a search gives one: best_of_n, majority, weighted_majority")
    output = output_of(config, verb="search")
    shared: dict[str, Any] = {own.name: getattr(config, own.name) for own in fields(AskConfig)} | {
        "output": str(output)
    }
    records = answer_problems(EvalConfig(**shared, decoding=config.algorithm))
    print(compute_table(records).to_markdown())
    print(f"{len(records)} answers in {output}")


def compute_table(records: Iterable[AnswerRecord]) -> Table:
    """What each method solved, where that is known, and what it spent per problem; cheapest first."""
    rows = []
    for (method, budget), group in group_records(records).items():
        n = len(group)
        graded = [record for record in group if record.grade is not Grade.UNGRADED]
        n_correct = sum(record.grade is Grade.CORRECT for record in graded)
        tokens = sum(record.n_generated_tokens for record in group) / n
        row = (
            f"{split_method(method)[1]}, n = {budget}",
            str(n),
            percent_with_interval(wilson_interval(n_correct, len(graded))) if graded else NOT_APPLICABLE,
            f"{tokens:.1f}",
            f"{sum(record.n_value_calls for record in group) / n:.1f}",
            f"{sum(record.n_steps for record in group) / n:.1f}",
            f"{100 * sum(record.finish_reason is FinishReason.LENGTH for record in group) / n:.1f}",
        )
        rows.append((tokens, row))
    header = ("algorithm", "problems", "correct %, 95 % interval", "tokens", "value calls", "steps", "cut %")
    return Table(header, tuple(row for _, row in sorted(rows)))
