"""Exact averages of terms over micro-batches, ranks and steps: one sum divided by one count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from posttrain.losses import Counts, Term


class TermAverages:
    """Sums of each term since the last log, and the counts to divide them by."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}  # (logged name, unit) -> this rank's sum
        self._counts: defaultdict[str, float] = defaultdict(float)  # unit -> global count

    def add_counts(self, counts: Counts) -> None:
        """Count the items of a step, all micro-batches and ranks together; once per step."""
        for unit, n_items in counts.items():
            self._counts[unit] += n_items

    def add_terms(self, terms: Sequence[Term]) -> None:
        """Add one micro-batch; stays on the device."""
        for term in terms:
            # A term is a loss if it can teach: its coefficient may be 0 for a while, its name must not change with it.
            name = f"loss/{term.name}" if term.value.requires_grad else term.name
            value = term.value.detach().double().sum()
            key = (name, term.unit)
            self._sums[key] = value + self._sums[key].to(value.device) if key in self._sums else value

    def drain(self, accelerator: Accelerator) -> dict[str, float]:
        """sum / count of every term since the last call, the same on every rank. All ranks must call it."""
        if not self._sums:
            return {}
        keys = sorted(self._sums)
        sums = accelerator.reduce(torch.stack([self._sums[key] for key in keys]), "sum").tolist()
        averages = {name: total / self._counts[unit] for (name, unit), total in zip(keys, sums, strict=True)}
        self._sums.clear()
        self._counts.clear()
        return averages

    def state(self) -> dict[str, float]:
        """This rank's open sums and counts as plain numbers, for a checkpoint."""
        sums = {f"sum of {name} by {unit}": value.item() for (name, unit), value in self._sums.items()}
        return {**sums, **{f"count of {unit}": n_items for unit, n_items in self._counts.items()}}

    def restore(self, state: Mapping[str, float]) -> None:
        """Take up what `state` returned; other keys are passed over."""
        for key, number in state.items():
            if key.startswith("sum of "):
                name, unit = key.removeprefix("sum of ").rsplit(" by ", 1)
                self._sums[name, unit] = torch.tensor(number, dtype=torch.float64)
            elif key.startswith("count of "):
                self._counts[key.removeprefix("count of ")] = number
