"""Transitions of several seeds: acting without crossing episodes, and a memory of what happened."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.world import World, step


@dataclass(frozen=True, slots=True)
class Transitions:
    """N transitions of each of S seeds."""

    observation: Tensor  # [S, N, n_bits] float32 of 0 and 1
    action: Tensor  # [S, N] int64
    reward: Tensor  # [S, N]
    is_terminal: Tensor  # [S, N] bool
    next_observation: Tensor  # [S, N, n_bits]; without meaning after a terminal step

    def flat(self) -> Transitions:
        """[S · N, ...], one row per transition, as the losses take them."""
        return Transitions(*(getattr(self, field.name).flatten(0, 1) for field in fields(self)))

    def of_seed(self, place: int) -> Transitions:
        """[N, ...], the rows of one seed."""
        return Transitions(*(getattr(self, field.name)[place] for field in fields(self)))


class Episodes:
    """N copies of a world in each of S seeds, that start anew when they end."""

    def __init__(self, world: World, streams: Streams, n: int) -> None:
        self.world, self.streams = world, streams
        self.observation = world.reset(streams, n)  # [S, N, n_bits], what the next action is chosen on

    def act(self, action: Tensor) -> Transitions:
        """One step with actions [S, N]. After a terminal step `observation` is that of the new episode."""
        before = self.observation
        outcome = step(self.world, before, action, self.streams)
        self.observation = outcome.next_observation.clone()
        if ended := outcome.is_terminal.any(-1).nonzero().flatten().tolist():
            first = self.world.reset(self.streams.only(ended), before.shape[1])
            is_over = outcome.is_terminal[ended][..., None]
            self.observation[ended] = torch.where(is_over, first, self.observation[ended])
        return Transitions(before, action, outcome.reward, outcome.is_terminal, outcome.next_observation)


class Memory:
    """The last `capacity` transitions of each seed. Each seed draws its own rows."""

    def __init__(self, n_seeds: int, capacity: int, n_bits: int) -> None:
        self.capacity, self.n_added = capacity, 0
        self._rows: dict[str, Tensor] = {
            "observation": torch.zeros(n_seeds, capacity, n_bits, dtype=torch.bool),
            "action": torch.zeros(n_seeds, capacity, dtype=torch.int64),
            "reward": torch.zeros(n_seeds, capacity),
            "is_terminal": torch.zeros(n_seeds, capacity, dtype=torch.bool),
            "next_observation": torch.zeros(n_seeds, capacity, n_bits, dtype=torch.bool),
        }

    def __len__(self) -> int:
        return min(self.n_added, self.capacity)

    def add(self, new: Transitions) -> None:
        """Store N transitions of each seed, the oldest give way."""
        n_new = new.action.shape[1]
        place = (self.n_added + torch.arange(n_new)) % self.capacity
        for name, stored in self._rows.items():
            stored[:, place] = getattr(new, name).to(stored.dtype)
        self.n_added += n_new

    def sample(self, streams: Streams, n: int) -> Transitions:
        """[S, n] rows, uniform, with replacement."""
        if not self.n_added:
            raise ValueError("the memory is empty: add transitions before the first sample")
        row = streams.integers(len(self), n)
        seed = torch.arange(len(streams))[:, None]
        return self._take((seed, row))

    def all(self) -> Transitions:
        """Everything stored, [S, len(self)], the oldest first."""
        oldest = self.n_added - len(self)
        row = (oldest + torch.arange(len(self))) % self.capacity
        return self._take((slice(None), row))

    def state(self) -> dict[str, Any]:
        return {"n_added": self.n_added, **self._rows}

    def load_state(self, state: dict[str, Any]) -> None:
        self.n_added = state["n_added"]
        for name, stored in self._rows.items():
            stored.copy_(state[name])

    def _take(self, index: tuple[Any, ...]) -> Transitions:
        rows = {name: stored[index] for name, stored in self._rows.items()}
        for name in ("observation", "next_observation"):
            rows[name] = rows[name].float()
        return Transitions(**rows)


def random_walk(world: World, streams: Streams, n_steps: int) -> Memory:
    """A memory of `n_steps` steps of one copy per seed under uniformly random actions."""
    episodes = Episodes(world, streams, 1)
    memory = Memory(len(streams), n_steps, world.n_bits)
    for _ in range(n_steps):
        memory.add(episodes.act(streams.integers(world.n_actions, 1)))
    return memory
