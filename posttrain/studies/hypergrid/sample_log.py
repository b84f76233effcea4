"""What a method has sampled so far, counted alike for all: states, objects, modes, the last 200,000 objects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.control.gflownet.hypergrid import NO_MODE, Hypergrid

LEGACY_WINDOW = 200_000  # objects; the paper's code measures its L1 on so many, whatever policy drew them


def total_variation(p: Tensor, q: Tensor) -> float:
    """½ Σ |p − q| of two distributions over the same objects."""
    return float((p.double() - q.double()).abs().sum() / 2)


class SampleLog:
    """Counts of what was sampled from a grid."""

    def __init__(self, grid: Hypergrid) -> None:
        self.grid = grid
        self.n_states = 0  # seen: each state of each trajectory, each proposal of a chain
        self.n_objects = 0
        self.is_found = torch.zeros(grid.graph.n_states, dtype=torch.bool)
        self.last = torch.zeros(LEGACY_WINDOW, dtype=torch.int32)  # a ring

    def add(self, objects: Tensor, *, n_states: int) -> None:
        """Objects [N] that were sampled at the cost of seeing `n_states` states."""
        self.see(objects, n_states=n_states)
        place = torch.arange(self.n_objects, self.n_objects + len(objects)) % LEGACY_WINDOW
        self.last[place] = objects.to(torch.int32)
        self.n_objects += len(objects)

    def see(self, objects: Tensor, *, n_states: int) -> None:
        """Objects [N] whose reward was read without sampling them."""
        self.is_found[objects] = True
        self.n_states += n_states

    def n_modes_found(self) -> int:
        found = self.grid.mode[self.is_found]
        return len(found[found != NO_MODE].unique())

    def legacy_l1(self) -> float:
        """Mean over objects of |p̂ − R/Z| with p̂ of the last 200,000: the paper's number, which is 2 TV / S of them."""
        recent = self.last[: self.n_objects]
        empirical = torch.bincount(recent, minlength=len(self.is_found)).double() / len(recent)
        return float((empirical - self.grid.graph.log_target.exp()).abs().mean())

    def measure(self, distribution: Tensor) -> dict[str, float]:
        """The study's numbers, of the `distribution` [S] that the method samples from now; no L1 without samples."""
        return {
            "tv": total_variation(distribution, self.grid.graph.log_target.exp()),
            **({"l1": self.legacy_l1()} if self.n_objects else {}),
            "modes": float(self.n_modes_found()),
            "states": float(self.n_states),
        }

    def state(self) -> dict[str, Any]:
        return {
            "n_states": self.n_states,
            "n_objects": self.n_objects,
            "is_found": self.is_found,
            "last": self.last,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.n_states, self.n_objects = state["n_states"], state["n_objects"]
        self.is_found, self.last = state["is_found"], state["last"]
