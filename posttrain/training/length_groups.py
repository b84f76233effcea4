"""The order of rows in which neighbours have similar lengths, so that a padded batch holds little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthGroupedOrder(Sampler[int]):
    """transformers' length-grouped order, a function of seed and epoch alone.

    Rows are shuffled, cut into stretches of up to 50 groups of `group_size`, and sorted by length within each stretch.
    transformers' own sampler draws from the global generator, whose state a resumed run has not when an epoch begins.
    """

    def __init__(self, lengths: Sequence[int], *, group_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.group_size = group_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.group_size, generator=generator))

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch from now on; Trainer calls it, also after a resume."""
        self.epoch = epoch
