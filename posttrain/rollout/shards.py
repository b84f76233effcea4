"""A collection dealt out to several engines: which problems each takes, and where it writes their rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

Item = TypeVar("Item")

_NAME = re.compile(r"(?P<stem>.+)-(?P<index>\d+)-of-(?P<count>\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """Part `index` of `count`: the chunks index, index + count, index + 2 · count, ... of the problems.

    Whole chunks are dealt, so each engine decodes the same batches as a single one would, and the merged rows are
    those of an undivided collection to the last bit of their log-probabilities.
    """

    count: int
    index: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `0/2`, the first of two. Raises ValueError."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(f"shard is {text!r}, needs index/count with an index below the count: 0/2 and 1/2")
        return cls(count=int(match[2]), index=int(match[1]))

    def path(self, output: Path) -> Path:
        """rows.jsonl -> rows-0-of-2.jsonl"""
        return output.with_name(f"{output.stem}-{self.index}-of-{self.count}{output.suffix}")

    def of(self, items: Sequence[Item], *, chunk_size: int) -> list[Item]:
        """The items of this shard, in order."""
        stride = self.count * chunk_size
        starts = range(self.index * chunk_size, len(items), stride)
        return [item for start in starts for item in items[start : start + chunk_size]]


def find_shards(output: Path) -> dict[Shard, Path]:
    """The shards that have been written beside `output`, in order."""
    found = {}
    for path in output.parent.glob(f"*{output.suffix}"):
        match = _NAME.fullmatch(path.stem)
        if match is not None and match["stem"] == output.stem:
            found[Shard(count=int(match["count"]), index=int(match["index"]))] = path
    return dict(sorted(found.items()))
