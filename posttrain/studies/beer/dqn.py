"""DQN (Mnih et al. 2015) with a penalty on the critic's features, which are of pairs φ(s, a) as the bound needs them.

Differs from the paper: the action is an input, one-hot, in place of one output for each action; the slow copy follows
by a share tau in each update in place of being replaced every few thousand; the loss is the square without clipping.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from posttrain.studies.beer.agents import AgentConfig, Batch, make_critics, slow_target, update_critics
from posttrain.studies.beer.networks import Critic
from posttrain.studies.beer.penalties import Penalty


class Greedy:
    """The policy that takes the best of all actions by a critic; of equal ones the first."""

    def __init__(self, critic: Critic, n_actions: int) -> None:
        self.critic, self.choices = critic, torch.eye(n_actions)

    @torch.no_grad()
    def __call__(self, observation: Tensor) -> Tensor:
        """[..., n_actions] one-hot, of observations [..., n_observations]."""
        n_actions = len(self.choices)
        lead = observation.shape[:-1]
        repeated = observation.unsqueeze(-2).expand(*lead, n_actions, -1)
        q = self.critic.value(self.critic.features(repeated, self.choices.expand(*lead, -1, -1)))
        return F.one_hot(q.argmax(-1), n_actions).float()


class Dqn:
    """A critic of discrete actions; action and value of the target are both those of its slow copy, no double DQN."""

    def __init__(self, n_observations: int, n_actions: int, config: AgentConfig, penalty: Penalty) -> None:
        self.config, self.penalty = config, penalty
        self.critics = make_critics(1, n_observations + n_actions, config)
        self.policy = Greedy(self.critics.network.each[0], n_actions)
        self.slow_policy = Greedy(self.critics.slow.each[0], n_actions)
        self.n_updates = 0

    def update(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One step of the critic; numbers for the log."""
        target = slow_target(self.critics, self.slow_policy, batch)
        numbers = update_critics(self.critics, self.policy, batch, target, self.config.discount, self.penalty)
        self.critics.follow(tau=self.config.tau)
        self.n_updates += 1
        return numbers

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"critics": self.critics.state(), "n_updates": self.n_updates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.critics.load_state(state["critics"])
        self.n_updates = state["n_updates"]
