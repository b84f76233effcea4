"""Accuracy by tag of the problems: subject, level, type of task, or what else their rows say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.evaluation.comparison import summarise
from posttrain.evaluation.records import SAMPLE, MethodBudget, split_method
from posttrain.evaluation.statistics import Interval
from posttrain.evaluation.tables import GREEDY, NOT_APPLICABLE, Answers, Table, method_label, percent_with_interval
from posttrain.schema import AnswerRecord


@dataclass(frozen=True, slots=True)
class TagValue:
    """The problems with one value of a tag, such as level 3."""

    value: str
    n_problems: int  # of the method that answered most of them
    accuracy: Mapping[str, Interval]  # by label, of the methods that answered any of them


def accuracy_by_tag(answers: Answers) -> dict[str, tuple[TagValue, ...]]:
    """tag -> its values in order, with every method's accuracy: Wilson's interval, or a bootstrap over problems.

    Single samples are left out: they are parts of other methods.
    """
    found: dict[str, dict[str, dict[MethodBudget, list[AnswerRecord]]]] = {}
    for method, records in sorted(answers.items(), key=_by_policy_greedy_first):
        for record in records if split_method(method[0])[1] != SAMPLE else ():
            for tag, value in record.tags:
                found.setdefault(tag, {}).setdefault(value, {}).setdefault(method, []).append(record)
    return {
        tag: tuple(_tag_value(value, by_method) for value, by_method in sorted(by_value.items()))
        for tag, by_value in sorted(found.items())
    }


def labels_of(values: Sequence[TagValue]) -> list[str]:
    """The methods that answered problems of any of these values."""
    return list(dict.fromkeys(label for value in values for label in value.accuracy))


def tag_table(tag: str, values: Sequence[TagValue]) -> Table:
    """A row for each value of a tag, a column for each method."""
    labels = labels_of(values)
    rows = [
        (
            value.value,
            str(value.n_problems),
            *(
                percent_with_interval(value.accuracy[label]) if label in value.accuracy else NOT_APPLICABLE
                for label in labels
            ),
        )
        for value in values
    ]
    return Table((tag, "problems", *(f"{label}, %" for label in labels)), tuple(rows))


def _tag_value(value: str, by_method: Mapping[MethodBudget, list[AnswerRecord]]) -> TagValue:
    summaries = [summarise(records) for records in by_method.values()]
    n_problems = max(summary.n_problems for summary in summaries)
    return TagValue(value, n_problems, {method_label(s.method, s.budget): s.accuracy for s in summaries})


def _by_policy_greedy_first(item: tuple[MethodBudget, object]) -> tuple[str, bool, MethodBudget]:
    policy, decoding = split_method(item[0][0])
    return policy, decoding != GREEDY, item[0]
