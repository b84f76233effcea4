"""DDPG (arXiv 1509.02971) and TD3 (arXiv 1802.09477) with a penalty on the critic's features.

One update each; acting, replay and evaluation are the learner's. Both read transitions (s, a, r, s', is_terminal): the
time limit of an episode is no end of the task, and the target bootstraps through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from posttrain.losses.representation import FeatureValues
from posttrain.losses.td import TransitionValues, td_squared
from posttrain.losses.term import Counts, total
from posttrain.studies.beer.networks import Actor, Critic, Trained
from posttrain.studies.beer.penalties import Penalty, means

Batch = Mapping[str, Tensor]  # observation, action, reward, next_observation, is_terminal: [N, ...]


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What DDPG and TD3 have in common."""

    hidden_sizes: Sequence[int]  # of actor and critics
    learning_rate: float  # of all networks
    discount: float
    tau: float  # share of its distance that a slow copy moves in each of its updates


class Ddpg:
    """A deterministic policy that climbs its critic; targets come from slow copies of both."""

    def __init__(self, n_observations: int, n_actions: int, config: AgentConfig, penalty: Penalty) -> None:
        self.config, self.penalty = config, penalty
        self.actor, self.critic = (
            _actor(n_observations, n_actions, config),
            _critic(n_observations + n_actions, config),
        )
        self.n_updates = 0

    def update(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of the critic, one of the actor; numbers for the log."""
        numbers = self._update_critic(batch)
        observation = batch["observation"]
        self.actor.descend(-q_value(self.critic.network, observation, self.actor.network(observation)).mean())
        for trained in (self.actor, self.critic):
            trained.follow(tau=self.config.tau)
        self.n_updates += 1
        return numbers

    def _update_critic(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            next_phi = self.critic.slow.features(batch["next_observation"], self.actor.slow(batch["next_observation"]))
            next_q = self.critic.slow.value(next_phi)
        return update_critic(self.critic, self.actor, batch, next_phi, next_q, self.config.discount, self.penalty)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"actor": self.actor.state(), "critic": self.critic.state(), "n_updates": self.n_updates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.actor.load_state(state["actor"])
        self.critic.load_state(state["critic"])
        self.n_updates = state["n_updates"]


@dataclass(frozen=True, slots=True)
class Td3Config:
    """What TD3 adds; actions are in [-1, 1]."""

    target_noise: float  # deviation of the noise on the target's action
    noise_clip: float  # its largest size
    actor_every: int  # critic updates for one of the actor and of the slow copies


class Td3:
    """DDPG with the smaller of two critics as target, smoothed over actions, and an actor that moves more rarely.

    The target mixes critics, Q_i = r + γ min_j Q'_j, so that the bound, which is about one critic's own consistency,
    certifies nothing where the other critic is the smaller. Each critic is penalised by its own features.
    """

    def __init__(
        self, n_observations: int, n_actions: int, config: AgentConfig, more: Td3Config, penalty: Penalty
    ) -> None:
        self.config, self.more, self.penalty = config, more, penalty
        self.actor = _actor(n_observations, n_actions, config)
        self.critic, self.second = (_critic(n_observations + n_actions, config) for _ in range(2))
        self.n_updates = 0

    def update(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of both critics and, every few, one of the actor; the first critic's numbers for the log."""
        numbers = self._update_critics(batch, generator)
        self.n_updates += 1
        if self.n_updates % self.more.actor_every == 0:
            observation = batch["observation"]
            self.actor.descend(-q_value(self.critic.network, observation, self.actor.network(observation)).mean())
            for trained in (self.actor, self.critic, self.second):
                trained.follow(tau=self.config.tau)
        return numbers

    def _update_critics(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        critics, clip = (self.critic, self.second), self.more.noise_clip
        with torch.no_grad():
            action = self.actor.slow(batch["next_observation"])
            noise = self.more.target_noise * torch.randn(action.shape, generator=generator)
            action = (action + noise.clamp(-clip, clip)).clamp(-1, 1)
            next_phis = [critic.slow.features(batch["next_observation"], action) for critic in critics]
            values = [critic.slow.value(phi) for critic, phi in zip(critics, next_phis, strict=True)]
            next_q = torch.minimum(*values)
        numbers = [
            update_critic(critic, self.actor, batch, next_phi, next_q, self.config.discount, self.penalty)
            for critic, next_phi in zip(critics, next_phis, strict=True)
        ]
        return numbers[0]

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        trained = {"actor": self.actor, "critic": self.critic, "second": self.second}
        return {"n_updates": self.n_updates, **{name: part.state() for name, part in trained.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.n_updates = state["n_updates"]
        for name, part in (("actor", self.actor), ("critic", self.critic), ("second", self.second)):
            part.load_state(state[name])


def update_critic(
    critic: Trained, actor: Trained, batch: Batch, next_phi: Tensor, next_q: Tensor, discount: float, penalty: Penalty
) -> dict[str, Tensor]:
    """One step of a critic on the squared temporal difference and its penalty; the terms' means, for the log."""
    network: Critic = critic.network
    features = feature_values(network, batch, next_phi, discount)
    q = network.value(features.phi)
    values = TransitionValues(q, features.inflow, features.carry, next_q, torch.ones_like(q))

    def online_next_features() -> Tensor:
        with torch.no_grad():
            return network.features(batch["next_observation"], actor.network(batch["next_observation"]))

    terms = (*td_squared(values), *penalty(features, online_next_features))
    # A batch of terminal rows alone has no segment; its penalty is 0, over whatever count.
    counts: Counts = {"transition": len(q), "segment": max(1, int((features.carry > 0).sum()))}
    critic.descend(total(terms, counts))
    return {**means(terms, counts), "q": q.detach().mean()}


def feature_values(critic: Critic, batch: Batch, next_phi: Tensor, discount: float) -> FeatureValues:
    """What a penalty sees of a batch whose next features are `next_phi`."""
    phi = critic.features(batch["observation"], batch["action"])
    weight, bias = critic.head.weight.squeeze(0), critic.head.bias.squeeze(0)
    carry = torch.where(batch["is_terminal"], 0.0, discount)
    return FeatureValues(phi, next_phi, weight, bias, batch["reward"], carry)


def q_value(critic: Critic, observation: Tensor, action: Tensor) -> Tensor:
    """[N] Q(s, a)."""
    return critic.value(critic.features(observation, action))


def _actor(n_observations: int, n_actions: int, config: AgentConfig) -> Trained:
    return Trained(Actor(n_observations, n_actions, config.hidden_sizes), learning_rate=config.learning_rate)


def _critic(n_inputs: int, config: AgentConfig) -> Trained:
    return Trained(Critic(n_inputs, config.hidden_sizes), learning_rate=config.learning_rate)
