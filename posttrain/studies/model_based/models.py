"""What an agent imagines with: the world itself, a learned model, or one's dynamics with another's reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import Transitions
from posttrain.control.worlds.world import World, step
from posttrain.losses.term import Term
from posttrain.losses.world_model import OutcomeValues, SimpleModelValues, simple_model
from posttrain.studies.model_based.stacked import StackedMLP


@dataclass(frozen=True, slots=True)
class Imagined:
    """One imagined step in each of S x B copies."""

    reward: Tensor  # [S, B] expected
    continuation: Tensor  # [S, B] chance that the episode goes on
    next_state: Tensor  # [S, B, n_state] sampled


class Model(Protocol):
    """Answers what may follow. A state is what the value network reads: an observation, or a model's code of one."""

    @property
    def n_state(self) -> int: ...

    def encode(self, observation: Tensor, streams: Streams) -> Tensor:
        """[S, B, n_state] states of observations [S, B, n_bits]."""
        ...

    def imagine(self, state: Tensor, action: Tensor, streams: Streams) -> Imagined:
        """One step from states [S, B, n_state] with actions [S, B]."""
        ...


class LearnedNetwork(nn.Module, ABC):
    """A `Model` whose loss is lowered on observed transitions."""

    n_state: int

    @abstractmethod
    def encode(self, observation: Tensor, streams: Streams) -> Tensor: ...

    @abstractmethod
    def imagine(self, state: Tensor, action: Tensor, streams: Streams) -> Imagined: ...

    @abstractmethod
    def terms(self, observed: Transitions, streams: Streams) -> tuple[Term, ...]:
        """Of S · N observed transitions; unit "transition"."""


class PerfectModel:
    """The world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.n_state = world.n_bits

    def encode(self, observation: Tensor, streams: Streams) -> Tensor:
        return observation

    def imagine(self, state: Tensor, action: Tensor, streams: Streams) -> Imagined:
        outcome = step(self.world, state, action, streams)
        return Imagined(outcome.reward, (~outcome.is_terminal).float(), outcome.next_observation)


class SimpleModel(LearnedNetwork):
    """Predicts each bit of the next observation on its own, the reward, and whether the episode goes on.

    Three networks: in one that is shared, the noise of the bits drowns the rare reward (0.62 too low on PanFlute's
    rewarding states from 4,000 random transitions, against 0.05 for networks of their own).
    """

    def __init__(self, world: World, streams: Streams, hidden: Sequence[int]) -> None:
        super().__init__()
        self.n_state, self.n_actions = world.n_bits, world.n_actions
        inner = (self.n_state + self.n_actions, *hidden)
        self.bits = StackedMLP(streams, (*inner, self.n_state))
        self.reward = StackedMLP(streams, (*inner, 1))
        self.continuation = StackedMLP(streams, (*inner, 1))

    def encode(self, observation: Tensor, streams: Streams) -> Tensor:
        return observation

    @torch.no_grad()
    def imagine(self, state: Tensor, action: Tensor, streams: Streams) -> Imagined:
        bits, reward, continuation = self._predict(state, action)
        return Imagined(reward, continuation.sigmoid(), streams.bernoulli(bits.sigmoid()).float())

    def terms(self, observed: Transitions, streams: Streams) -> tuple[Term, ...]:
        bits, reward, continuation = self._predict(observed.observation, observed.action)
        truth = observed.flat()
        outcome = OutcomeValues(reward.flatten(), continuation.flatten(), truth.reward, truth.is_terminal)
        return simple_model(SimpleModelValues(bits.flatten(0, 1), truth.next_observation, outcome))

    def _predict(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the bits [S, B, n_bits], mean reward [S, B], logit of the continuation [S, B]."""
        inputs = torch.cat((observation, one_hot(action, self.n_actions).float()), -1)
        return self.bits(inputs), self.reward(inputs).squeeze(-1), self.continuation(inputs).squeeze(-1)


@dataclass(frozen=True)
class Spliced:
    """The next states of one model with the rewards of another: tells whose errors matter."""

    dynamics: Model
    reward: Model

    @property
    def n_state(self) -> int:
        return self.dynamics.n_state

    def encode(self, observation: Tensor, streams: Streams) -> Tensor:
        return self.dynamics.encode(observation, streams)

    def imagine(self, state: Tensor, action: Tensor, streams: Streams) -> Imagined:
        step = self.dynamics.imagine(state, action, streams)
        return Imagined(self.reward.imagine(state, action, streams).reward, step.continuation, step.next_state)
