"""Experience replay: a ring of rows, drawn uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor


class Replay:
    """The last `capacity` rows of named fields; new rows overwrite the oldest."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, needs 1 or more")
        self.capacity = capacity
        self.n_added = 0
        self._fields: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.n_added, self.capacity)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Store n rows, all fields [n, ...]; the first call decides the fields, their shapes and dtypes.

        Raises ValueError when fields, shapes or dtypes differ from the first call's, or n exceeds the capacity.
        """
        n_rows = self._check(rows)
        if not self._fields:
            self._fields = {name: rows[name].new_zeros((self.capacity, *rows[name].shape[1:])) for name in rows}
        place = (self.n_added + torch.arange(n_rows)) % self.capacity
        for name, field in self._fields.items():
            field[place] = rows[name].detach()
        self.n_added += n_rows

    def sample(self, n: int, generator: Generator) -> dict[str, Tensor]:
        """n rows drawn uniformly with replacement. Raises ValueError when nothing has been added."""
        if not self:
            raise ValueError("the replay is empty: add rows before drawing from it")
        return self.rows(torch.randint(len(self), (n,), generator=generator))

    def rows(self, place: Tensor) -> dict[str, Tensor]:
        """The rows at these places [n], 0 up to the number of rows held."""
        return {name: field[place] for name, field in self._fields.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the rows that are held."""
        held = len(self)
        return {"n_added": self.n_added, "fields": {name: field[:held] for name, field in self._fields.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.n_added = state["n_added"]
        self._fields = {}
        for name, held in state["fields"].items():
            self._fields[name] = held.new_zeros((self.capacity, *held.shape[1:]))
            self._fields[name][: len(held)] = held

    def _check(self, rows: Mapping[str, Tensor]) -> int:
        if not rows:
            raise ValueError("got no fields, needed at least one")
        looks = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in rows.items()}
        held = {name: (field.shape[1:], field.dtype) for name, field in self._fields.items()} or looks
        if looks != held:
            raise ValueError(f"got {_spoken(looks)}; the replay holds {_spoken(held)}")
        sizes = {name: len(tensor) for name, tensor in rows.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"fields have {sizes} rows, needed as many of each")
        n_rows = next(iter(sizes.values()))
        if n_rows > self.capacity:
            raise ValueError(f"got {n_rows} rows at once for a capacity of {self.capacity}")
        return n_rows


def _spoken(looks: Mapping[str, tuple[torch.Size, torch.dtype]]) -> str:
    return ", ".join(f"{name} {list(shape)} {str(dtype)[6:]}" for name, (shape, dtype) in looks.items())
