"""How an agent departs from its policy while it learns, by the kind of its actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from posttrain.control.continuous.environment import ActionKind


class Exploration(Protocol):
    """Both give one action, [n_actions]."""

    def random(self, n_actions: int, generator: Generator) -> Tensor:
        """An action drawn uniformly."""
        ...

    def disturb(self, action: Tensor, generator: Generator) -> Tensor:
        """What is played in place of the policy's action."""
        ...


@dataclass(frozen=True, slots=True)
class Noise:
    """Normal noise on continuous actions, cut at the bounds."""

    deviation: float

    def random(self, n_actions: int, generator: Generator) -> Tensor:
        return 2 * torch.rand(n_actions, generator=generator) - 1

    def disturb(self, action: Tensor, generator: Generator) -> Tensor:
        return (action + self.deviation * torch.randn(action.shape, generator=generator)).clamp(-1, 1)


@dataclass(frozen=True, slots=True)
class EpsilonGreedy:
    """With probability epsilon any choice, the policy's own included."""

    epsilon: float

    def random(self, n_actions: int, generator: Generator) -> Tensor:
        return F.one_hot(torch.randint(n_actions, (), generator=generator), n_actions).float()

    def disturb(self, action: Tensor, generator: Generator) -> Tensor:
        is_random = bool(torch.rand((), generator=generator) < self.epsilon)
        return self.random(len(action), generator) if is_random else action


def make_exploration(kind: ActionKind, amount: float) -> Exploration:
    """Noise of deviation `amount` on continuous actions; a random one with this probability among discrete ones."""
    return Noise(amount) if kind is ActionKind.CONTINUOUS else EpsilonGreedy(amount)
