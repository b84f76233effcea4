"""What a deterministic policy really gets, from every state that it visits, beside what its critic says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain.control.continuous.environment import Environment
from posttrain.studies.beer.networks import Critic

Policy = Callable[[Tensor], Tensor]  # observations [..., n_observations] to actions [..., n_actions]
TAIL = 0.01  # what is left of a reward's weight where a discounted sum is cut


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An episode of the policy without exploration, played beyond its time limit for the discounted sums."""

    total: float  # undiscounted sum of the task's rewards up to the time limit
    observation: Tensor  # [N, n_observations] the states whose returns are known
    action: Tensor  # [N, n_actions]
    discounted: Tensor  # [N] Σ_k γ^k r_{t+k} over at least `horizon` steps, in the task's rewards
    mass: Tensor  # [N] Σ_k γ^k over the same steps


def evaluate_episode(environment: Environment, policy: Policy, *, seed: int, discount: float) -> Evaluated:
    """Play one episode and, past its time limit, as long as the sums of its last states need.

    The task itself has no time limit for the critic, which bootstraps through it; so the sums go on too. They are cut
    after `horizon` steps, where γ^k is 1 %, and sooner only where the task ends.
    """
    horizon = cut(discount)
    observation = environment.reset(seed)
    observations, actions, rewards = [], [], []
    is_terminal = False
    while not is_terminal and len(rewards) < environment.n_steps + horizon:
        action = policy(torch.from_numpy(observation)).numpy()
        observations.append(observation)
        actions.append(action)
        observation, reward, is_terminal = environment.step(action)
        rewards.append(reward)
    n_known = min(len(rewards), environment.n_steps)
    return Evaluated(
        total=float(np.sum(rewards[: environment.n_steps])),
        observation=torch.from_numpy(np.stack(observations[:n_known])),
        action=torch.from_numpy(np.stack(actions[:n_known])),
        discounted=_discounted(np.array(rewards), discount)[:n_known],
        mass=_discounted(np.ones(len(rewards)), discount)[:n_known],
    )


def cut(discount: float) -> int:
    """Steps until γ^k falls to TAIL: 459 at γ = 0.99."""
    return math.ceil(math.log(TAIL) / math.log(discount))


def q_errors(
    critic: Critic, episodes: Sequence[Evaluated], *, reward_scale: float, reward_shift: float
) -> dict[str, float]:
    """Mean of |Q − G| and of Q − G over all visited states, G the discounted sum of rewards as the agent sees them.

    G is that of the state's own episode: one sample, which is exact where task and policy are deterministic.
    """
    differences = []
    for episode in episodes:
        q = critic.value(critic.features(episode.observation, episode.action)).double()
        seen = reward_scale * (episode.discounted + reward_shift * episode.mass)
        differences.append(q - seen)
    difference = torch.cat(differences)
    return {"q_error": float(difference.abs().mean()), "q_bias": float(difference.mean())}


def _discounted(rewards: NDArray[np.float64], discount: float) -> Tensor:
    sums = np.zeros(len(rewards) + 1)
    for t in reversed(range(len(rewards))):
        sums[t] = rewards[t] + discount * sums[t + 1]
    return torch.from_numpy(sums[:-1])
