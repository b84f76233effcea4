"""Averages of what samples earned, over all samples and ranks since the last log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from accelerate.utils import gather_object

SUM, COUNT = "sampled sum of ", "sampled number of "  # keys in a checkpoint's progress


class SampleAverages:
    """Sums by name; a name may come with some samples only, and is averaged over those."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def add(self, metrics: Iterable[Mapping[str, float]]) -> None:
        for of_sample in metrics:
            for name, x in of_sample.items():
                self._sums[name] += x
                self._counts[name] += 1

    def drain(self) -> dict[str, float]:
        """sum / count of every name since the last call, the same on every rank. All ranks must call it."""
        sums: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for of_sums, of_counts in gather_object([(dict(self._sums), dict(self._counts))]):
            sums.update(of_sums)
            counts.update(of_counts)
        self._sums.clear()
        self._counts.clear()
        return {name: sums[name] / counts[name] for name in sorted(sums)}

    def state(self) -> dict[str, float]:
        """This rank's open sums and counts as plain numbers, for a checkpoint."""
        sums = {SUM + name: x for name, x in self._sums.items()}
        return {**sums, **{COUNT + name: float(n) for name, n in self._counts.items()}}

    def restore(self, state: Mapping[str, float]) -> None:
        """Take up what `state` returned; other keys are passed over."""
        for key, number in state.items():
            if key.startswith(SUM):
                self._sums[key.removeprefix(SUM)] = number
            elif key.startswith(COUNT):
                self._counts[key.removeprefix(COUNT)] = int(number)
