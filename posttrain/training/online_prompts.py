"""Which prompt is sampled when, as a function of the seed and nothing else: not of world size, batch size or resuming.

A run samples P prompts in each round. Its slots are numbered through: slot n is place n % P of round n // P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True, slots=True)
class OnlinePrompt:
    text: str
    kind: str  # kinds take turns, so that each gets an equal share of the samples whatever its number of prompts


class PromptOrder:
    """Kinds in turn, and within a kind each prompt once before any comes again, shuffled anew every time."""

    def __init__(self, prompts: Sequence[OnlinePrompt], *, seed: int) -> None:
        if not prompts:
            raise ValueError(
                "there are no prompts to sample from, needed at least one: were all of them filtered out?"
            )
        kinds = sorted({prompt.kind for prompt in prompts})
        self._of_kind = [[i for i, prompt in enumerate(prompts) if prompt.kind == kind] for kind in kinds]
        self._shuffled = lru_cache(maxsize=2 * len(kinds))(self._shuffle)
        self._seed = seed

    def at(self, slot: int) -> int:
        """The index of the prompt of a slot."""
        turn, kind = divmod(slot, len(self._of_kind))
        cycle, place = divmod(turn, len(self._of_kind[kind]))
        return self._shuffled(kind, cycle)[place]

    def _shuffle(self, kind: int, cycle: int) -> list[int]:
        rng = np.random.default_rng((self._seed, kind, cycle))
        return [self._of_kind[kind][i] for i in rng.permutation(len(self._of_kind[kind]))]


class StepSlots(Dataset[int]):
    """Slots in the order of the optimiser steps: those of a round once for each of its updates."""

    def __init__(self, *, n_rounds: int, prompts_per_round: int, updates_per_round: int) -> None:
        self.prompts_per_round = prompts_per_round
        self._updates_per_round = updates_per_round
        self._n_steps = n_rounds * updates_per_round

    def __len__(self) -> int:
        return self._n_steps * self.prompts_per_round

    def __getitem__(self, index: int) -> int:
        step, place = divmod(index, self.prompts_per_round)
        return step // self._updates_per_round * self.prompts_per_round + place


def collate_slots(slots: Sequence[int]) -> dict[str, Tensor]:
    """{"slot": [P]} of a micro-batch of prompts."""
    return {"slot": torch.tensor(slots, dtype=torch.int64)}
