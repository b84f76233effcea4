"""DQN with a penalty on a grid whose optimal values are known: what BEER's bound does while a critic converges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from posttrain.control.continuous.grid import GridWorld
from posttrain.control.continuous.rank import effective_rank, numerical_rank
from posttrain.losses.representation import FeatureValues, beer_hinge
from posttrain.losses.td import TransitionValues, td_squared
from posttrain.losses.term import total
from posttrain.studies.beer.grid_config import BeerGridConfig
from posttrain.studies.beer.networks import Critic, Trained
from posttrain.studies.beer.penalties import Passes, Penalty, means


class GridLearner:
    """One update on pairs drawn uniformly from all states and actions; nothing is explored."""

    def __init__(self, world: GridWorld, config: BeerGridConfig, penalty: Penalty, *, seed: int) -> None:
        self.world, self.config, self.penalty = world, config, penalty
        self.pairs = world.pair_features()  # [P, S + A]
        self.carry = torch.where(world.is_terminal, 0.0, config.discount)
        self.reward = world.reward.float()
        self.starts = world.is_start.nonzero().squeeze(-1)  # the pairs to draw from
        self.optimal_q = world.optimal_q(discount=config.discount)
        torch.manual_seed(seed)  # of the network's initialisation alone
        self.critic = Trained(Critic(self.pairs.shape[1], config.hidden_sizes), learning_rate=config.learning_rate)
        self.generator = Generator().manual_seed(seed)

    def step(self, step: int) -> Mapping[str, Tensor]:
        """One update; the terms' means."""
        drawn = torch.randint(len(self.starts), (self.config.batch_size,), generator=self.generator)
        pair = self.starts[drawn]
        with torch.no_grad():
            next_phi, next_q = self._next(self.critic.slow, pair)
        features = self._features(pair, next_phi)
        q = self.critic.network.value(features.phi)
        values = TransitionValues(q, features.inflow, features.carry, next_q, torch.ones_like(q))
        passes = Passes(
            lambda: self._next(self.critic.network, pair)[0], lambda: self.critic.first.features(self.pairs[pair])
        )
        terms = (*td_squared(values), *self.penalty(features, passes))
        counts = {"transition": len(q), "segment": max(1, int((features.carry > 0).sum()))}
        self.critic.descend(total(terms, counts))
        self.critic.follow(tau=self.config.tau)
        return means(terms, counts)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Over all pairs: mean |Q − Q*|, the ranks of the features, and BEER's bound, whatever the penalty is."""
        next_phi, next_q = self._next(self.critic.slow, self.starts)
        features = self._features(self.starts, next_phi)
        q = self.critic.network.value(features.phi)
        residual = q - (features.inflow + features.carry * next_q)
        bound = means(beer_hinge(features, coef=0.0, unit="segment"), {"segment": int((features.carry > 0).sum())})
        return {
            "q_error": float((q - self.optimal_q[self.starts]).abs().mean()),
            "td_error": float(residual.abs().mean()),
            "rank": float(numerical_rank(features.phi, threshold=self.config.rank_threshold)),
            "effective_rank": float(effective_rank(features.phi, delta=self.config.rank_delta)),
            **{name: float(mean) for name, mean in bound.items()},
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"critic": self.critic.state(), "generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.critic.load_state(state["critic"])
        self.generator.set_state(state["generator"])

    def _features(self, pair: Tensor, next_phi: Tensor) -> FeatureValues:
        head = self.critic.network.head
        phi = self.critic.network.features(self.pairs[pair])
        weight, bias = head.weight.squeeze(0), head.bias.squeeze(0)
        return FeatureValues(phi, next_phi, weight, bias, self.reward[pair], self.carry[pair])

    def _next(self, network: Critic, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] and values [N] of the best pair that follows each of `pair`, by `network`."""
        phi = network.features(self.pairs)
        q = network.value(phi).view(self.world.n_states, self.world.n_actions)
        best = self.world.n_actions * torch.arange(self.world.n_states) + q.argmax(-1)
        following = best[self.world.next_state[pair]]
        return phi[following], q.view(-1)[following]
