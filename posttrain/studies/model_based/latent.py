"""A model with states of its own: categorical variables, predicted from one another (as in DreamerV2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import Transitions
from posttrain.control.worlds.world import World
from posttrain.losses.term import Term
from posttrain.losses.world_model import (
    LatentModelValues,
    OutcomeValues,
    categorical_latent_model,
    straight_through,
)
from posttrain.studies.model_based.models import Imagined, LearnedNetwork
from posttrain.studies.model_based.stacked import StackedMLP


class CategoricalLatentModel(LearnedNetwork):
    """Codes φ of n_groups one-hot variables; next codes, rewards and ends are predicted from φ and the action.

    One sample of all groups keeps what belongs together, such as bits that switch at once, where the simple model
    draws each bit on its own. Only the model's loss trains the encoder.
    """

    def __init__(
        self, world: World, streams: Streams, hidden: Sequence[int], *, n_groups: int, n_classes: int
    ) -> None:
        super().__init__()
        self.n_groups, self.n_classes, self.n_actions = n_groups, n_classes, world.n_actions
        self.n_state = n_groups * n_classes
        inner = (self.n_state + self.n_actions, *hidden)
        self.encoder = StackedMLP(streams, (world.n_bits, *hidden, self.n_state))
        self.prior = StackedMLP(streams, (*inner, self.n_state))
        self.decoder = StackedMLP(streams, (self.n_state, *hidden, world.n_bits))
        self.reward = StackedMLP(streams, (*inner, 1))
        self.continuation = StackedMLP(streams, (*inner, 1))

    @torch.no_grad()
    def encode(self, observation: Tensor, streams: Streams) -> Tensor:
        return self._sample(self._groups(self.encoder(observation)), streams).flatten(-2)

    @torch.no_grad()
    def imagine(self, state: Tensor, action: Tensor, streams: Streams) -> Imagined:
        inputs = self._with_action(state, action)
        next_state = self._sample(self._groups(self.prior(inputs)), streams).flatten(-2)
        continuation = self.continuation(inputs).squeeze(-1).sigmoid()
        return Imagined(self.reward(inputs).squeeze(-1), continuation, next_state)

    def terms(self, observed: Transitions, streams: Streams) -> tuple[Term, ...]:
        logit = self._groups(self.encoder(observed.observation))
        state = straight_through(self._sample(logit.detach(), streams), logit).flatten(-2)
        inputs = self._with_action(state, observed.action)
        truth = observed.flat()
        outcome = OutcomeValues(
            self.reward(inputs).flatten(), self.continuation(inputs).flatten(), truth.reward, truth.is_terminal
        )
        values = LatentModelValues(
            posterior_logit=self._groups(self.encoder(observed.next_observation)).flatten(0, 1),
            prior_logit=self._groups(self.prior(inputs)).flatten(0, 1),
            decoded_logit=self.decoder(state).flatten(0, 1),
            observation=truth.observation,
            outcome=outcome,
        )
        return categorical_latent_model(values)

    def _groups(self, logit: Tensor) -> Tensor:
        """[S, B, n_groups, n_classes]"""
        return logit.unflatten(-1, (self.n_groups, self.n_classes))

    def _sample(self, logit: Tensor, streams: Streams) -> Tensor:
        return one_hot(streams.categorical(logit), self.n_classes).to(logit.dtype)

    def _with_action(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.cat((state, one_hot(action, self.n_actions).to(state.dtype)), -1)
