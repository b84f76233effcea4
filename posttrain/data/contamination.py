"""Overlap between a training file and a test split: `posttrain data contamination`.

A test problem is touched when its question and a training row have a run of n words in common (13 as in Brown et al.
2020, arXiv 2005.14165, appendix C). Words are lower-case runs of letters and digits. LaTeX commands count as words,
the Asymptote code of drawings ([asy] to [/asy]) does not. The whole training row is searched, solutions included.
Only the question of a test problem is looked for, since two different problems may well have a line of working in
common. A question shorter than n words is looked for as a whole.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from posttrain.data.fields import RowError
from posttrain.data.problems import find_data
from posttrain.data.sources import OnBadRow, read_rows

WORD = re.compile(r"[a-z0-9]+")
DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
QUESTION_COLUMNS = ("question", "problem", "prompt", "messages")
MAX_SHOWN_CHARACTERS = 200

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContaminationConfig:
    """What `posttrain data contamination` compares."""

    train: str = field(metadata={"help": "rows that are or will be trained on: a file or a Hub id"})
    test: str = field(metadata={"help": "the test split: a file or a Hub id whose rows have a question"})
    n: int = field(default=13, metadata={"help": "words in a row that two texts must share"})
    n_shown: int = field(default=10, metadata={"help": "how many of the worst problems are printed"})

    def __post_init__(self) -> None:
        if self.n < 1 or self.n_shown < 0:
            raise ValueError(f"n is {self.n}, n_shown is {self.n_shown}; n must be positive and n_shown at least 0")


@dataclass(frozen=True, slots=True)
class Overlap:
    """One test problem and the training row that shares most with it."""

    where: str  # "test.jsonl:12"
    question: str
    n_shared: int  # of the question's distinct runs of n words, how many the training row has
    n_grams: int  # distinct runs in the question
    train_where: str  # "train.jsonl:317"

    @property
    def share(self) -> float:
        return self.n_shared / self.n_grams


@dataclass(frozen=True, slots=True)
class Contamination:
    """Which problems of a test split a training file touches."""

    n: int
    n_problems: int
    n_short: int  # questions shorter than n words, looked for as a whole
    n_train_rows: int
    overlaps: tuple[Overlap, ...]  # touched problems, the largest share first


def data_contamination(config: ContaminationConfig) -> None:
    """Print the share of test problems with a run of n words in the training file, and the worst of them."""
    print(table(find_overlaps(config.train, config.test, n=config.n), n_shown=config.n_shown))


def find_overlaps(train: str, test: str, *, n: int) -> Contamination:
    """Compare every row of `train` with every question of `test`. Raises RowsError when either cannot be read.

    Memory grows with the test split alone; training rows are looked at one by one.
    """
    questions = read_rows(find_data(test), _question, on_bad_row=OnBadRow.ERROR).rows
    grams = [set(word_runs(question, n)) for _, question in questions]
    index: dict[Gram, list[int]] = defaultdict(list)
    for problem, own in enumerate(grams):
        for gram in own:
            index[gram].append(problem)
    sizes = sorted({len(gram) for gram in index})
    best: dict[int, tuple[int, str]] = {}

    def look_at(row: object, where: str) -> None:
        words = _words(" ".join(_texts(row)))
        n_shared: dict[int, int] = defaultdict(int)
        for size in sizes:
            for gram in {gram for gram in _runs(words, size) if gram in index}:
                for problem in index[gram]:
                    n_shared[problem] += 1
        for problem, count in n_shared.items():
            if count > best.get(problem, (0, ""))[0]:
                best[problem] = (count, where)

    n_train_rows = read_rows(find_data(train), look_at, on_bad_row=OnBadRow.ERROR).n_read
    overlaps = [
        Overlap(*questions[problem], n_shared, len(grams[problem]), where)
        for problem, (n_shared, where) in best.items()
    ]
    overlaps.sort(key=lambda overlap: (-overlap.share, -overlap.n_shared, overlap.where))
    n_short = sum(any(len(gram) < n for gram in own) for own in grams)
    return Contamination(n, len(questions), n_short, n_train_rows, tuple(overlaps))


def word_runs(text: str, n: int) -> Iterator[Gram]:
    """The runs of n words of a text; the whole text where it is shorter; nothing where it has no words."""
    words = _words(text)
    return _runs(words, min(n, len(words)))


def table(found: Contamination, *, n_shown: int) -> str:
    """The counts, then a line of places and a line of text for each of the worst problems."""
    n_touched, n_half = len(found.overlaps), sum(overlap.share >= 0.5 for overlap in found.overlaps)
    short = f" ({found.n_short:,} questions are shorter and were looked for as a whole)" if found.n_short else ""
    share = 100 * n_touched / found.n_problems
    lines = [
        f"{n_touched:,} of {found.n_problems:,} test problems ({share:.2f} %) share a run of {found.n} words with "
        f"one of {found.n_train_rows:,} training rows{short}; {n_half:,} share at least half of their runs"
    ]
    for overlap in found.overlaps[:n_shown]:
        lines.append(
            f"  {overlap.where}  {100 * overlap.share:.0f} % ({overlap.n_shared} of {overlap.n_grams} runs)  "
            f"in {overlap.train_where}"
        )
        lines.append(f"    {' '.join(overlap.question.split())[:MAX_SHOWN_CHARACTERS]}")
    if n_touched > n_shown:
        lines.append(f"  ... and {n_touched - n_shown:,} more (--n_shown)")
    return "\n".join(lines)


def _words(text: str) -> list[str]:
    return WORD.findall(DRAWING.sub(" ", text).lower())


def _runs(words: Sequence[str], size: int) -> Iterator[Gram]:
    if size:
        yield from (tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _question(row: object, where: str) -> tuple[str, str]:
    if isinstance(row, Mapping):
        for column in QUESTION_COLUMNS:
            if row.get(column):
                return where, " ".join(_texts(row[column]))
    raise RowError([f"{where}: has none of the columns {', '.join(QUESTION_COLUMNS)}: is this a test split?"])


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value, in order; token ids, rewards and the like are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
