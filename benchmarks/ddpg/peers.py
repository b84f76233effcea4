"""The same agents by this library and by stable-baselines3: same sizes, same settings, same tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrain.studies.beer.agents import Ddpg, Td3
from posttrain.studies.beer.config import BeerConfig
from posttrain.studies.beer.learner import ControlLearner
from posttrain.studies.beer.run import Run, make_learner
from posttrain.studies.beer.run import environment as environment_of

N_RANDOM = 1000


@dataclass(frozen=True)
class Task:
    """What is played, by the options of `posttrain control beer`."""

    task: str
    action_repeat: int = 1
    reward_scale: float = 1.0
    exploration: float = 0.1


PENDULUM = Task("Pendulum-v1")
WALKER = Task("walker-walk", action_repeat=4, reward_scale=0.25, exploration=0.2)  # as recipes/beer/walker_walk.yaml


@dataclass(frozen=True)
class Case:
    """An algorithm with its networks, and its task."""

    algorithm: str  # "ddpg", "td3"
    width: int  # of both hidden layers of every network
    batch_size: int
    task: Task = PENDULUM


def our_config(case: Case) -> BeerConfig:
    return BeerConfig(
        output_dir=Path("unused"),
        hidden_sizes=(case.width, case.width),
        batch_size=case.batch_size,
        n_random_steps=N_RANDOM,
        replay_capacity=50_000,
        **asdict(case.task),
    )


def our_learner(case: Case, *, seed: int) -> ControlLearner:
    """Without a penalty."""
    return make_learner(Run(our_config(case), case.algorithm, seed))


def sb3_model(case: Case, *, seed: int) -> Any:
    """stable-baselines3's class of the algorithm, one update after each step as in ours."""
    import gymnasium
    from stable_baselines3 import DDPG, TD3
    from stable_baselines3.common.noise import NormalActionNoise

    from benchmarks.ddpg.as_gymnasium import AsGymnasium

    ours = our_config(case)
    if case.task == PENDULUM:
        environment = gymnasium.make(ours.task)
    else:
        environment = AsGymnasium(environment_of(ours), reward_scale=ours.reward_scale)
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
    if not isinstance(agent, Ddpg | Td3):
        raise TypeError(f"the agent is a {type(agent).__name__}, needed one with an actor")
    pairs = [(model.actor.mu, agent.actor.network), (model.actor_target.mu, agent.actor.slow)]
    pairs += zip(model.critic.q_networks, agent.critics.network.each, strict=True)
    pairs += zip(model.critic_target.q_networks, agent.critics.slow.each, strict=True)
    with torch.no_grad():
        for theirs, ours in pairs:
            for source, target in zip(theirs.parameters(), ours.parameters(), strict=True):
                target.copy_(source)
