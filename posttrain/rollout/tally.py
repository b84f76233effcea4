"""Counting what a collection has gathered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from posttrain.rewards.grade import extracted_answer
from posttrain.schema import FinishReason, Grade, Problem, TrajectoryRow


@dataclass(slots=True)
class Tally:
    """Sums over the rows of whole problems."""

    n_problems: int = 0
    n_solved: int = 0  # problems with at least one CORRECT answer
    n_mixed: int = 0  # solved, but not by every answer: where methods that compare answers find a signal
    n_tokens: int = 0  # sampled
    n_cut: int = 0  # answers that the token budget ended
    n_by_grade: Counter[Grade] = field(default_factory=Counter)

    def add(self, problem: Problem, rows: Sequence[TrajectoryRow]) -> None:
        """Count all answers to one problem."""
        grades = Counter(_grade_of(problem, row) for row in rows)
        self.n_problems += 1
        self.n_solved += grades[Grade.CORRECT] > 0
        self.n_mixed += 0 < grades[Grade.CORRECT] < len(rows)
        self.n_tokens += sum(end - start for row in rows for start, end in row.action_spans)
        self.n_cut += sum(row.finish_reason is FinishReason.LENGTH for row in rows)
        self.n_by_grade += grades

    @classmethod
    def from_json(cls, counts: Mapping[str, Any]) -> Self:
        """The sums of which `to_json` made `counts`."""
        return cls(
            n_problems=counts["n_problems"],
            n_solved=counts["n_problems_solved"],
            n_mixed=counts["n_problems_mixed"],
            n_tokens=counts["n_tokens"],
            n_cut=counts["n_cut_by_length"],
            # Summaries from before grading could time out do not count timeouts.
            n_by_grade=Counter({g: counts.get(f"n_{g.value}", 0) for g in Grade}),
        )

    def __add__(self, other: Tally) -> Tally:
        """The sums over the problems of both."""
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def n_rows(self) -> int:
        return self.n_by_grade.total()

    def progress(self) -> str:
        """For the progress bar: `accuracy 31.2 %, unparsed 4.0 %`, and timeouts where there are any."""
        percent = {g: 100 * self.n_by_grade[g] / max(self.n_rows, 1) for g in Grade}
        timeout = f", timeout {percent[Grade.TIMEOUT]:.1f} %" if percent[Grade.TIMEOUT] else ""
        return f"accuracy {percent[Grade.CORRECT]:.1f} %, unparsed {percent[Grade.UNPARSED]:.1f} %{timeout}"

    def to_json(self) -> dict[str, object]:
        """Counts and the shares that readers ask for first; shares of an empty collection are null."""
        n_rows = self.n_rows
        return {
            "n_problems": self.n_problems,
            "n_rows": n_rows,
            "accuracy": self.n_by_grade[Grade.CORRECT] / n_rows if n_rows else None,
            **{f"n_{g.value}": self.n_by_grade[g] for g in Grade},
            "n_cut_by_length": self.n_cut,
            "n_problems_solved": self.n_solved,
            "n_problems_mixed": self.n_mixed,
            "n_tokens": self.n_tokens,
            "tokens_per_answer": self.n_tokens / n_rows if n_rows else None,
        }


def _grade_of(problem: Problem, row: TrajectoryRow) -> Grade:
    """What the row's reward says, without grading again; an answer that timed out counts as wrong here."""
    if row.reward == 1.0:
        return Grade.CORRECT
    return Grade.UNPARSED if extracted_answer(problem, row.completion or "") is None else Grade.WRONG
