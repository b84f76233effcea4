"""The splits that have a card under data/, as the cards state them; numbers on other rows cannot be compared."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from posttrain.data.sources import LOCAL_FORMATS, Rows


class SplitDiffersWarning(UserWarning):
    """A source has the name of a known split and other rows."""


@dataclass(frozen=True, slots=True)
class KnownSplit:
    """One file of a data set, and what it is on the Hub."""

    file: str  # folder and name: data/<folder>/README.md is its card
    n_rows: int
    sha256: str  # of the file's bytes
    hub: str | None  # where the same rows are; their file is another, so only the rows are counted there


KNOWN_SPLITS = (
    KnownSplit(
        "gsm8k/train.jsonl",
        7473,
        "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        hub="openai/gsm8k:main:train",
    ),
    KnownSplit(
        "gsm8k/test.jsonl",
        1319,
        "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        hub="openai/gsm8k:main:test",
    ),
    KnownSplit(
        "math/math_train.jsonl",
        7500,
        "0f8cf32d66548ea36b2d9cdec534a9d927f99995da0705f23aa5633d06fe9bac",
        hub=None,
    ),
    KnownSplit(
        "math/math_test.jsonl",
        5000,
        "8a2395d43063bebabb4331bc5dafd15fec3eb67be9eb77c136ec496c6a18aef1",
        hub=None,
    ),
    KnownSplit(
        "math/math500.jsonl",
        500,
        "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
        hub="HuggingFaceH4/MATH-500::test",
    ),
)


def known_split(source: str) -> KnownSplit | None:
    """The split that a path names by its last folder and file, or that a Hub id is; None for any other source."""
    name = "/".join(Path(source).parts[-2:]) if Path(source).suffix in LOCAL_FORMATS else source
    return next((split for split in KNOWN_SPLITS if name in (split.file, split.hub)), None)


def difference(rows: Rows[object]) -> str | None:
    """What is wrong with a known split, as one sentence; None where it is what its card says, or is not known."""
    split = known_split(rows.source)
    if split is None:
        return None
    is_file = rows.source != split.hub
    if rows.n_read == split.n_rows and (rows.sha256 == split.sha256 or not is_file):
        return None
    came = f"{rows.n_read:,} rows" + (f" with sha256 {rows.sha256[:12]}" if is_file else "")
    needed = f"{split.n_rows:,} rows" + (f" with sha256 {split.sha256[:12]}" if is_file else "")
    folder = split.file.partition("/")[0]
    return (
        f"{rows.source} holds {came}; the split of that name has {needed} (data/{folder}/README.md): results on it "
        "cannot be compared with others'. Get the file as that card says, or give yours another name"
    )


def warn_where_it_differs(rows: Rows[object]) -> None:
    """Warn with SplitDiffersWarning when a known split is not what its card says."""
    message = difference(rows)
    if message is not None:
        warnings.warn(message, SplitDiffersWarning, stacklevel=3)
