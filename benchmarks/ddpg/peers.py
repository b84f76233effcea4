"""The same agents by this library and by stable-baselines3: same sizes, same settings, same task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrain.studies.beer.config import BeerConfig
from posttrain.studies.beer.learner import ControlLearner
from posttrain.studies.beer.run import Run, make_learner

TASK = "Pendulum-v1"
N_RANDOM = 1000


@dataclass(frozen=True)
class Case:
    """An algorithm with its networks."""

    algorithm: str  # "ddpg", "td3"
    width: int  # of both hidden layers of every network
    batch_size: int


def our_learner(case: Case, *, seed: int) -> ControlLearner:
    """Without a penalty."""
    config = BeerConfig(
        output_dir=Path("unused"),
        task=TASK,
        hidden_sizes=(case.width, case.width),
        batch_size=case.batch_size,
        n_random_steps=N_RANDOM,
        replay_capacity=50_000,
    )
    return make_learner(Run(config, case.algorithm, seed))


def sb3_model(case: Case, *, seed: int) -> Any:
    """stable-baselines3's class of the algorithm, one update after each step as in ours."""
    import gymnasium
    from stable_baselines3 import DDPG, TD3
    from stable_baselines3.common.noise import NormalActionNoise

    ours = BeerConfig(output_dir=Path("unused"))
    environment = gymnasium.make(TASK)
    n_actions = environment.action_space.shape[0]
    more = {
        "ddpg": {},
        "td3": {
            "policy_delay": ours.actor_every,
            "target_policy_noise": ours.target_noise,
            "target_noise_clip": ours.noise_clip,
        },
    }[case.algorithm]
    return {"ddpg": DDPG, "td3": TD3}[case.algorithm](
        "MlpPolicy",
        environment,
        learning_rate=ours.learning_rate,
        buffer_size=50_000,
        learning_starts=N_RANDOM,
        batch_size=case.batch_size,
        tau=ours.tau,
        gamma=ours.discount,
        train_freq=1,
        gradient_steps=1,
        action_noise=NormalActionNoise(np.zeros(n_actions), ours.exploration * np.ones(n_actions)),
        policy_kwargs={"net_arch": [case.width, case.width]},
        seed=seed,
        device="cpu",
        verbose=0,
        **more,
    )


def copy_weights(model: Any, learner: ControlLearner) -> None:
    """Give our agent the weights of stable-baselines3's, slow copies included."""
    agent = learner.agent
    pairs = [(model.actor.mu, agent.actor.network), (model.actor_target.mu, agent.actor.slow)]
    pairs += zip(model.critic.q_networks, agent.critics.network.each, strict=True)
    pairs += zip(model.critic_target.q_networks, agent.critics.slow.each, strict=True)
    with torch.no_grad():
        for theirs, ours in pairs:
            for source, target in zip(theirs.parameters(), ours.parameters(), strict=True):
                target.copy_(source)
