"""The learner of control tasks: acting with exploration, replay, updates of an agent, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from posttrain.control.continuous.environment import Environment, Episode, reset_seed
from posttrain.control.continuous.rank import effective_rank, numerical_rank
from posttrain.control.replay import Replay
from posttrain.losses.representation import beer_hinge
from posttrain.studies.beer.agents import feature_values
from posttrain.studies.beer.config import BeerConfig
from posttrain.studies.beer.exploration import make_exploration
from posttrain.studies.beer.networks import Critics, Trained
from posttrain.studies.beer.penalties import means
from posttrain.studies.beer.returns import Policy, evaluate_episode, q_errors

# Parts of the seed: training and evaluation episodes never begin alike.
TRAINING, EVALUATION = 0, 1


class Agent(Protocol):
    """What DDPG, TD3 and DQN look like from here."""

    policy: Policy  # of the networks that are trained, without exploration
    slow_policy: Policy  # of their slow copies
    critics: Trained[Critics]  # of which the first is measured
    n_updates: int

    def update(self, batch: Mapping[str, Tensor], generator: Generator) -> Mapping[str, Tensor]: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class ControlLearner:
    """One environment step at a time, and its update, as training.loop asks."""

    def __init__(
        self, agent: Agent, training: Environment, evaluation: Environment, config: BeerConfig, *, seed: int
    ) -> None:
        self.agent, self.evaluation, self.config, self.seed = agent, evaluation, config, seed
        self.episode = Episode(training, seed=reset_seed(seed, TRAINING), n_steps=training.n_steps)
        self.replay = Replay(config.replay_capacity)
        self.exploration = make_exploration(training.action_kind, config.exploration)
        self.generator = Generator().manual_seed(seed)

    def step(self, step: int) -> Mapping[str, Tensor]:
        """Play one action; from the first step that is not random on, one update every `update_every` steps."""
        observation = self.episode.observation
        is_random = step < self.config.n_random_steps
        action = self._random_action() if is_random else self._exploring_action(observation)
        outcome, _ = self.episode.step(action)
        reward = self.config.reward_scale * (outcome.reward + self.config.reward_shift)
        row = {"observation": observation, "action": action, "next_observation": outcome.observation}
        self.replay.add(
            {
                **{name: torch.from_numpy(value).unsqueeze(0) for name, value in row.items()},
                "reward": torch.tensor([reward], dtype=torch.float32),
                "is_terminal": torch.tensor([outcome.is_terminal]),
            }
        )
        if is_random or step % self.config.update_every:
            return {}
        return self.agent.update(self.replay.sample(self.config.batch_size, self.generator), self.generator)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Return of the policy without exploration, how far Q is from what follows, and the rank of the features.

        The episodes' first states differ from one evaluation to the next.
        """
        config, critic = self.config, self.agent.critics.network.each[0]
        episodes = [
            evaluate_episode(
                self.evaluation,
                self.agent.policy,
                seed=reset_seed(self.seed, EVALUATION, self.agent.n_updates, number),
                discount=config.discount,
            )
            for number in range(config.n_eval_episodes)
        ]
        returns = [episode.total for episode in episodes]
        errors = q_errors(critic, episodes, reward_scale=config.reward_scale, reward_shift=config.reward_shift)
        return {"return": float(np.mean(returns)), **errors, **self._representation()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "agent": self.agent.state(),
            "episode": self.episode.state(),
            "replay": self.replay.state(),
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.agent.load_state(state["agent"])
        self.episode.load_state(state["episode"])
        self.replay.load_state(state["replay"])
        self.generator.set_state(state["generator"])

    def _random_action(self) -> NDArray[np.float32]:
        return self.exploration.random(self.episode.environment.n_actions, self.generator).numpy()

    @torch.no_grad()
    def _exploring_action(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.exploration.disturb(self.agent.policy(torch.from_numpy(observation)), self.generator).numpy()

    def _representation(self) -> dict[str, float]:
        """Ranks of the critic's features and BEER's bound on transitions from the replay, whatever the penalty is.

        The draw leaves the learner's generator alone.
        """
        config, critics = self.config, self.agent.critics
        drawn = self.replay.sample(config.rank_samples, Generator().manual_seed(self.seed))
        next_observation = drawn["next_observation"]
        next_phi = critics.slow.each[0].features(next_observation, self.agent.slow_policy(next_observation))
        features = feature_values(critics.network.each[0], drawn, next_phi, config.discount)
        measured = beer_hinge(features, coef=0.0, unit="segment")
        n_segments = max(1, int((features.carry > 0).sum()))
        return {
            "rank": float(numerical_rank(features.phi, threshold=config.rank_threshold)),
            "effective_rank": float(effective_rank(features.phi, delta=config.rank_delta)),
            **{name: float(mean) for name, mean in means(measured, {"segment": n_segments}).items()},
        }
