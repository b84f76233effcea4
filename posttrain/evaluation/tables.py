"""Tables of the report, as Markdown for README files and as HTML for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations

from posttrain.evaluation.comparison import Comparison, ComparisonError, MethodSummary, compare, summarise
from posttrain.evaluation.records import SAMPLE, MethodBudget, group_records, split_method
from posttrain.evaluation.statistics import Interval, seed_interval
from posttrain.schema import AnswerRecord, Grade

GREEDY = "greedy"
START_METHOD = "sft/greedy"
NOT_APPLICABLE = "–"
_PLACE = {"oreo": 0, "dpo": 1, "rejection_sampling": 2, "sft": 4}
_PLACE_OF_OTHERS = 3

Answers = Mapping[MethodBudget, Sequence[AnswerRecord]]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first column names the row, the others hold numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        rule = ("---", *("---:" for _ in self.header[1:]))
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (self.header, rule, *self.rows)) + "\n"

    def to_html(self, caption: str) -> str:
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.header)
        rows = "\n".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f"<td>{_unbroken(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        return (
            f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
        )


def over_seeds(by_seed: Sequence[float], digits: int, *, lowest: float = -math.inf) -> str:
    """One number per seed as a cell: its mean with Student's t interval; of one seed alone, of none a dash.

    lowest: what the quantity cannot be below; the interval is cut there.
    """
    if not by_seed:
        return NOT_APPLICABLE
    if len(by_seed) == 1:
        return f"{by_seed[0]:,.{digits}f}"
    x = seed_interval(by_seed)
    return f"{x.estimate:,.{digits}f} [{max(lowest, x.low):,.{digits}f}, {x.high:,.{digits}f}]"


def replace_between(text: str, begin: str, end: str, content: str) -> str:
    """`text`, a README, with what stands between two of its lines replaced by `content`.

    Raises ValueError when a mark is missing: its tables would go stale without a word.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no {begin!r} with {end!r} behind it, between which the tables belong")
    return f"{before}{begin}\n{content}\n{end}{after}"


def markdown_table(records: Iterable[AnswerRecord], *, start_method: str = START_METHOD) -> str:
    """The summary table of these records as Markdown, for a README."""
    return summary_table(group_records(records), start_method=start_method).to_markdown()


def summary_table(answers: Answers, *, start_method: str) -> Table:
    """One row per method and budget: accuracy, interval, tokens, and the paired difference to the start.

    Greedy methods come first, beginning with the start; then the others by name and budget. Answers that could not be
    graded within the limits have a column where there are any.
    """
    has_seeds = any(len({record.seed for record in records}) > 1 for records in answers.values())
    has_timeouts = any(record.grade is Grade.TIMEOUT for records in answers.values() for record in records)
    start = _start(answers, start_method)
    header = ["method", "samples", "problems", "seeds", "accuracy %, 95 % interval"]
    header += ["interval over seeds (t)"] if has_seeds else []
    header += ["tokens per answer", f"points over {start_method}", "unparsed %"]
    header += ["timeout %"] if has_timeouts else []
    header += ["cut %"]
    rows = []
    for key in _reading_order(answers, start_method):
        summary = summarise(answers[key])
        cells = [summary.method, str(summary.budget), str(summary.n_problems), str(len(summary.by_seed))]
        cells += [percent_with_interval(summary.accuracy)]
        cells += [percent_interval(summary.over_seeds)] if has_seeds else []
        cells += [f"{summary.tokens_per_answer:.1f}", _difference_to(start, key, answers[key])]
        counts = [summary.n_unparsed, *([summary.n_timeout] if has_timeouts else []), summary.n_cut]
        cells += [f"{100 * n / summary.n_answers:.1f}" for n in counts]
        rows.append(tuple(cells))
    return Table(tuple(header), tuple(rows))


def paired_comparisons(answers: Answers) -> tuple[tuple[Comparison, ...], tuple[str, ...]]:
    """The comparisons that the report shows, and a line for each that could not be made.

    They are: every two greedy methods; for each policy its other decodings against its greedy one, each at its largest
    budget, and against each other at the largest budget that both have.
    """
    comparisons: list[Comparison] = []
    problems: list[str] = []
    for a, b in _pairs(list(answers)):
        try:
            comparison = compare(answers[a], answers[b])
        except ComparisonError as error:
            problems.append(str(error))
            continue
        comparisons.append(comparison)
    return tuple(comparisons), tuple(problems)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """a against b: difference with its intervals, discordant problems and McNemar's p, each seed by itself."""
    has_seeds = any(len(comparison.by_seed) > 1 for comparison in comparisons)
    header = ["a against b", "problems", "a − b, points, 95 % interval"]
    header += ["interval over seeds (t)", "by seed"] if has_seeds else []
    header += ["solved by a alone : by b alone", "McNemar p"]
    rows = []
    for c in comparisons:
        cells = [f"{method_label(*c.a)} against {method_label(*c.b)}", str(c.n_problems)]
        cells += [difference(c)]
        if has_seeds:
            cells += [
                points_interval(None if c.is_identical else c.over_seeds),
                "; ".join(f"{100 * s.difference:+.1f}" for s in c.by_seed),
            ]
        cells += ["; ".join(f"{s.n_only_a} : {s.n_only_b}" for s in c.by_seed)]
        rows.append((*cells, "; ".join(p_value(s.mcnemar_p) for s in c.by_seed)))
    return Table(tuple(header), tuple(rows))


def method_label(method: str, budget: int) -> str:
    """ "oreo/beam, n = 8"; the budget of a greedy answer is always 1 and goes unsaid."""
    return method if split_method(method)[1] == GREEDY else f"{method}, n = {budget}"


def percent_with_interval(x: Interval) -> str:
    return f"{100 * x.estimate:.1f} [{100 * x.low:.1f}, {100 * x.high:.1f}]"


def percent_interval(x: Interval | None) -> str:
    return f"[{100 * x.low:.1f}, {100 * x.high:.1f}]" if x else NOT_APPLICABLE


def difference(c: Comparison) -> str:
    """Points of a over b with their interval; equal answers have none, since a resample of them has no spread."""
    return "0.0, the same problems solved" if c.is_identical else points_with_interval(c.difference)


def points_with_interval(x: Interval) -> str:
    return f"{100 * x.estimate:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]"


def points_interval(x: Interval | None) -> str:
    return f"[{100 * x.low:+.1f}, {100 * x.high:+.1f}]" if x else NOT_APPLICABLE


def p_value(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def largest_budgets(summaries: Iterable[MethodSummary]) -> tuple[MethodSummary, ...]:
    """Each method once, at its largest budget."""
    largest: dict[str, MethodSummary] = {}
    for summary in sorted(summaries, key=lambda s: s.budget):
        largest[summary.method] = summary
    return tuple(largest.values())


def _start(answers: Answers, start_method: str) -> tuple[MethodBudget, Sequence[AnswerRecord]] | None:
    found = [(key, records) for key, records in answers.items() if key[0] == start_method]
    return found[0] if found else None


def _difference_to(
    start: tuple[MethodBudget, Sequence[AnswerRecord]] | None, key: MethodBudget, records: Sequence[AnswerRecord]
) -> str:
    if start is None or start[0] == key:
        return NOT_APPLICABLE
    try:
        return difference(compare(records, start[1]))
    except ComparisonError:
        # Single samples and methods run on other problems have no pair; the comparison section says why.
        return NOT_APPLICABLE


def _reading_order(keys: Iterable[MethodBudget], start_method: str) -> list[MethodBudget]:
    def place(key: MethodBudget) -> tuple[bool, bool, int, MethodBudget]:
        policy, decoding = split_method(key[0])
        return (key[0] != start_method, decoding != GREEDY, -_PLACE.get(policy, _PLACE_OF_OTHERS), key)

    return sorted(keys, key=place)


def _pairs(keys: Sequence[MethodBudget]) -> list[tuple[MethodBudget, MethodBudget]]:
    greedy = sorted((key for key in keys if split_method(key[0])[1] == GREEDY), key=_left_first)
    pairs = list(combinations(greedy, 2))
    budgets: dict[str, set[int]] = {}
    for method, budget in keys:
        if split_method(method)[1] not in (GREEDY, SAMPLE):
            budgets.setdefault(method, set()).add(budget)
    for method in budgets:
        same_policy = [key for key in greedy if split_method(key[0])[0] == split_method(method)[0]]
        pairs += [((method, max(budgets[method])), key) for key in same_policy]
    for a, b in combinations(budgets, 2):
        shared = budgets[a] & budgets[b]
        if shared and split_method(a)[0] == split_method(b)[0]:
            pairs.append(((a, max(shared)), (b, max(shared))))
    return pairs


def _left_first(key: MethodBudget) -> tuple[int, MethodBudget]:
    """The method under test stands on the left of a comparison, the start on the right."""
    return (_PLACE.get(split_method(key[0])[0], _PLACE_OF_OTHERS), key)


def _unbroken(cell: str) -> str:
    """HTML of a cell that may break between the seeds of a list and nowhere else."""
    return escape(cell).replace(" ", "&nbsp;").replace(";&nbsp;", "; ")
