"""Q-learning with a target network, for several seeds at once."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.control.worlds.streams import Streams
from posttrain.losses.td import TransitionValues, td_squared
from posttrain.losses.term import total
from posttrain.studies.model_based.sources import ValueBatch
from posttrain.studies.model_based.stacked import StackedMLP, adam


@dataclass(frozen=True, slots=True)
class DeepQConfig:
    hidden: tuple[int, ...]
    learning_rate: float
    discount: float
    temperature: float  # of the softmax over Q that acts
    target_period: int  # updates between two copies of Q to its target


class DeepQ:
    """Q(s, ·) of each seed."""

    def __init__(self, config: DeepQConfig, *, n_state: int, n_actions: int, streams: Streams) -> None:
        self.config, self.streams = config, streams
        self.network = StackedMLP(streams, (n_state, *config.hidden, n_actions))
        self.target = deepcopy(self.network).requires_grad_(False)
        self.optimizer = adam(self.network.parameters(), config.learning_rate)
        self.n_updates = 0

    @torch.no_grad()
    def sample(self, state: Tensor) -> Tensor:
        """[S, B] actions from the softmax of Q(s, ·)/temperature."""
        return self.streams.categorical(self.network(state) / self.config.temperature)

    @torch.no_grad()
    def greedy(self, state: Tensor) -> Tensor:
        """[S, B] actions of the largest Q."""
        return self.network(state).argmax(-1)

    def update(self, batch: ValueBatch) -> dict[str, Tensor]:
        """One step on the temporal differences of the batch. A seed's weights are scaled to a mean of 1."""
        q = self.network(batch.state).gather(-1, batch.action[..., None]).squeeze(-1)
        next_q = self.target(batch.next_state).max(-1).values
        weight = batch.weight / batch.weight.mean(-1, keepdim=True)
        values = TransitionValues(
            q.flatten(),
            batch.reward.flatten(),
            self.config.discount * batch.continuation.flatten(),
            next_q.flatten(),
            weight.flatten(),
        )
        # Divided by the transitions of one seed, so that a seed's step does not depend on how many run beside it.
        loss = total(td_squared(values), {"transition": batch.action.shape[1]})
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.n_updates += 1
        if self.n_updates % self.config.target_period == 0:
            self.target.load_state_dict(self.network.state_dict())
        return {"loss/td": loss.detach() / len(q), "q": q.detach().mean()}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "n_updates": self.n_updates,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.n_updates = state["n_updates"]
