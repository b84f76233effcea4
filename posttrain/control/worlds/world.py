"""What the worlds of arXiv 2211.02222 share: a state is its observation, a flat vector of bits, and steps are batched.

Since nothing is hidden, a world is also the perfect model of itself: it can be asked what follows any observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from posttrain.control.worlds.streams import Streams


class World(Protocol):
    """Rules of a world over observations [S, B, n_bits] float32 of 0 and 1: S seeds, B copies each."""

    @property
    def n_bits(self) -> int: ...

    @property
    def n_actions(self) -> int: ...

    @property
    def p_chance(self) -> float:
        """Chance of the event that sometimes brings the goal about unasked; 0 switches it off."""
        ...

    def without_chance(self) -> World:
        """The same world without that event, to measure what the agent itself earns."""
        ...

    def reset(self, streams: Streams, n: int) -> Tensor:
        """[S, n, n_bits] first observations."""
        ...

    def reward(self, observation: Tensor) -> Tensor:
        """[S, B] reward of acting in `observation`; in these worlds no action changes it."""
        ...

    def is_terminal(self, observation: Tensor) -> Tensor:
        """[S, B] bool: acting in `observation` ends the episode."""
        ...

    def move(self, observation: Tensor, action: Tensor, streams: Streams) -> Tensor:
        """[S, B, n_bits] what follows, for actions [S, B] int64; after a terminal step it has no meaning."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step in each of S x B copies."""

    reward: Tensor  # [S, B]
    is_terminal: Tensor  # [S, B] bool
    next_observation: Tensor  # [S, B, n_bits]


def step(world: World, observation: Tensor, action: Tensor, streams: Streams) -> Step:
    """Act once. The caller starts anew where the step was terminal."""
    return Step(
        reward=world.reward(observation),
        is_terminal=world.is_terminal(observation),
        next_observation=world.move(observation, action, streams),
    )
