"""DDPG (arXiv 1509.02971) and TD3 (arXiv 1802.09477) with a penalty on the critic's features.

One update each; acting, replay and evaluation are the learner's. Both read transitions (s, a, r, s', is_terminal): the
time limit of an episode is no end of the task, and the target bootstraps through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from posttrain.losses.representation import FeatureValues
from posttrain.losses.td import TransitionValues, td_squared
from posttrain.losses.term import Counts, total
from posttrain.studies.beer.networks import Actor, Critic, Critics, Trained
from posttrain.studies.beer.penalties import Passes, Penalty, means
from posttrain.studies.beer.returns import Policy

Batch = Mapping[str, Tensor]  # observation, action, reward, next_observation, is_terminal: [N, ...]


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What DDPG, TD3 and DQN have in common."""

    hidden_sizes: Sequence[int]  # of actor and critics
    learning_rate: float  # of all networks
    discount: float
    tau: float  # share of its distance that a slow copy moves in each of its updates


class Ddpg:
    """A deterministic policy that climbs its critic; targets come from slow copies of both."""

    def __init__(self, n_observations: int, n_actions: int, config: AgentConfig, penalty: Penalty) -> None:
        self.config, self.penalty = config, penalty
        self.actor = _actor(n_observations, n_actions, config)
        self.critics = make_critics(1, n_observations + n_actions, config)
        self.policy, self.slow_policy = self.actor.network, self.actor.slow
        self.n_updates = 0

    def update(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of the critic, one of the actor; numbers for the log."""
        target = slow_target(self.critics, self.slow_policy, batch)
        numbers = update_critics(self.critics, self.policy, batch, target, self.config.discount, self.penalty)
        climb(self.actor, self.critics.network.each[0], batch["observation"])
        for trained in (self.actor, self.critics):
            trained.follow(tau=self.config.tau)
        self.n_updates += 1
        return numbers

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"actor": self.actor.state(), "critics": self.critics.state(), "n_updates": self.n_updates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.actor.load_state(state["actor"])
        self.critics.load_state(state["critics"])
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
        self.critics = make_critics(2, n_observations + n_actions, config)
        self.policy, self.slow_policy = self.actor.network, self.actor.slow
        self.n_updates = 0

    def update(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of both critics and, every few, one of the actor; the first critic's numbers for the log."""
        numbers = self._update_critics(batch, generator)
        self.n_updates += 1
        if self.n_updates % self.more.actor_every == 0:
            climb(self.actor, self.critics.network.each[0], batch["observation"])
            for trained in (self.actor, self.critics):
                trained.follow(tau=self.config.tau)
        return numbers

    def _update_critics(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        clip = self.more.noise_clip
        with torch.no_grad():
            action = self.actor.slow(batch["next_observation"])
            noise = self.more.target_noise * torch.randn(action.shape, generator=generator)
            action = (action + noise.clamp(-clip, clip)).clamp(-1, 1)
            next_phis = tuple(slow.features(batch["next_observation"], action) for slow in self.critics.slow.each)
            values = [slow.value(phi) for slow, phi in zip(self.critics.slow.each, next_phis, strict=True)]
            target = Target(torch.minimum(*values), next_phis)
        return update_critics(self.critics, self.policy, batch, target, self.config.discount, self.penalty)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"actor": self.actor.state(), "critics": self.critics.state(), "n_updates": self.n_updates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.actor.load_state(state["actor"])
        self.critics.load_state(state["critics"])
        self.n_updates = state["n_updates"]


class Target(NamedTuple):
    """What the critics are drawn to, by the slow copies."""

    next_q: Tensor  # [N] one number for all critics
    next_phis: tuple[Tensor, ...]  # [N, D] of each critic


@torch.no_grad()
def slow_target(critics: Trained[Critics], slow_policy: Policy, batch: Batch) -> Target:
    """By the slow copy of the only critic, at the actions of the slow policy."""
    [slow] = critics.slow.each
    next_phi = slow.features(batch["next_observation"], slow_policy(batch["next_observation"]))
    return Target(slow.value(next_phi), (next_phi,))


def climb(actor: Trained[Actor], critic: Critic, observation: Tensor) -> None:
    """One step of the actor up the critic, which gets no gradient."""
    actor.descend(-critic.value(critic.features(observation, actor.network(observation))).mean())


def update_critics(
    critics: Trained[Critics],
    policy: Policy,
    batch: Batch,
    target: Target,
    discount: float,
    penalty: Penalty,
) -> dict[str, Tensor]:
    """One step of all critics on squared temporal differences and penalties; the first one's means, for the log.

    Critics share no weight, so that one step on the sum of their losses is a step of each.
    """
    losses, numbers = [], []
    for critic, first, next_phi in zip(critics.network.each, critics.first.each, target.next_phis, strict=True):
        features = feature_values(critic, batch, next_phi, discount)
        q = critic.value(features.phi)
        values = TransitionValues(q, features.inflow, features.carry, target.next_q, torch.ones_like(q))
        terms = (*td_squared(values), *penalty(features, _passes(critic, first, policy, batch)))
        # A batch of terminal rows alone has no segment; its penalty is 0, over whatever count.
        counts: Counts = {"transition": len(q), "segment": max(1, int((features.carry > 0).sum()))}
        losses.append(total(terms, counts))
        numbers.append({**means(terms, counts), "q": q.detach().mean()})
    critics.descend(torch.stack(losses).sum())
    return numbers[0]


def _passes(critic: Critic, first: Critic, policy: Policy, batch: Batch) -> Passes:
    @torch.no_grad()
    def online_next_phi() -> Tensor:
        return critic.features(batch["next_observation"], policy(batch["next_observation"]))

    return Passes(online_next_phi, lambda: first.features(batch["observation"], batch["action"]))


def feature_values(critic: Critic, batch: Batch, next_phi: Tensor, discount: float) -> FeatureValues:
    """What a penalty sees of a batch whose next features are `next_phi`."""
    phi = critic.features(batch["observation"], batch["action"])
    weight, bias = critic.head.weight.squeeze(0), critic.head.bias.squeeze(0)
    carry = torch.where(batch["is_terminal"], 0.0, discount)
    return FeatureValues(phi, next_phi, weight, bias, batch["reward"], carry)


def _actor(n_observations: int, n_actions: int, config: AgentConfig) -> Trained[Actor]:
    return Trained(Actor(n_observations, n_actions, config.hidden_sizes), learning_rate=config.learning_rate)


def make_critics(n: int, n_inputs: int, config: AgentConfig) -> Trained[Critics]:
    """n critics of inputs (observation, action), with their slow copies."""
    return Trained(Critics(n, n_inputs, config.hidden_sizes), learning_rate=config.learning_rate)
