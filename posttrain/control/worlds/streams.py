"""Random numbers of several seeds at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Streams:
    """One generator per seed: a seed draws the same numbers alone as beside others. The first axis is the seed."""

    def __init__(self, seeds: Sequence[int]) -> None:
        if len(set(seeds)) != len(seeds) or not seeds:
            raise ValueError(f"seeds {list(seeds)}: needed at least one, and each only once")
        self.seeds = tuple(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def only(self, places: Sequence[int]) -> Streams:
        """The seeds at these places, with the same generators: what they draw, these draw no more."""
        some = Streams([self.seeds[place] for place in places])
        some._generators = [self._generators[place] for place in places]
        return some

    def uniform(self, *shape: int) -> Tensor:
        """[S, *shape] float32 in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=generator) for generator in self._generators])

    def integers(self, high: int, *shape: int) -> Tensor:
        """[S, *shape] int64 in [0, high)."""
        return torch.stack([torch.randint(high, shape, generator=generator) for generator in self._generators])

    def distinct(self, n: int, high: int, *shape: int) -> Tensor:
        """[S, *shape, n] int64 in [0, high), no two alike along the last axis."""
        if n > high:
            raise ValueError(f"{n} distinct numbers below {high} do not exist")
        return self.uniform(*shape, high).argsort(-1)[..., :n]

    def bernoulli(self, p: Tensor) -> Tensor:
        """Bool with the chances p [S, ...]."""
        return self.uniform(*p.shape[1:]) < p

    def categorical(self, logit: Tensor) -> Tensor:
        """[S, ...] int64 drawn from the softmax of logits [S, ..., n_classes], by the Gumbel maximum."""
        gumbel = -(-self.uniform(*logit.shape[1:]).clamp_min(1e-30).log()).log()
        return (logit + gumbel).argmax(-1)

    def state(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def load_state(self, state: Sequence[Tensor]) -> None:
        for generator, of_seed in zip(self._generators, state, strict=True):
            generator.set_state(of_seed)
