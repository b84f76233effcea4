"""`posttrain eval compare A B`: two results on the same problems, paired."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from posttrain.evaluation.comparison import Comparison, compare
from posttrain.evaluation.records import SAMPLE, answers_file, group_records, read_records, split_method
from posttrain.evaluation.tables import comparison_table
from posttrain.schema import AnswerRecord


@dataclass(frozen=True)
class CompareConfig:
    """Which results to compare."""

    a: Path = field(metadata={"help": "a results file, or the folder that holds answers.jsonl", "positional": True})
    b: Path = field(metadata={"help": "the other one; may be the same, with two policies in it", "positional": True})
    a_method: str | None = field(
        default=None, metadata={"help": "of a, such as oreo/greedy; default: every method that both have"}
    )
    b_method: str | None = field(default=None, metadata={"help": "of b, such as sft/greedy"})


def compare_files(config: CompareConfig) -> None:
    """Print accuracy of a minus accuracy of b for each decoding and budget that both have.

    Raises ComparisonError when they are of other problems or seeds, ValueError when nothing can be paired.
    """
    pairs = list(_pairs(_read(config.a, config.a_method), _read(config.b, config.b_method), config))
    if not pairs:
        raise ValueError(
            f"nothing in {config.a} and {config.b} can be paired: needed one decoding and budget in both, or "
            "--a_method and --b_method, as in oreo/greedy and sft/greedy"
        )
    print(comparison_table(pairs).to_markdown())


Found = dict[tuple[str, int], tuple[AnswerRecord, ...]]


def _read(path: Path, method: str | None) -> Found:
    file = answers_file(path) if path.is_dir() else path
    found = {
        key: group for key, group in group_records(read_records(file)).items() if not key[0].endswith(f"/{SAMPLE}")
    }
    if method is None:
        return found
    own = {key: group for key, group in found.items() if key[0] == method}
    if not own:
        raise ValueError(f"{file} has no answers by {method}; it has {', '.join(sorted({name for name, _ in found}))}")
    return own


def _pairs(a: Found, b: Found, config: CompareConfig) -> list[Comparison]:
    is_named = config.a_method is not None and config.b_method is not None
    return [
        compare(records_a, records_b)
        for (name_a, budget_a), records_a in a.items()
        for (name_b, budget_b), records_b in b.items()
        if (is_named or (split_method(name_a)[1], budget_a) == (split_method(name_b)[1], budget_b))
        and not (config.a == config.b and (name_a, budget_a) <= (name_b, budget_b) and not is_named)
    ]
