"""Where the transitions of a value update come from: replayed, or imagined by a model from replayed states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import Memory
from posttrain.studies.model_based.models import Imagined, Model

Policy = Callable[[Tensor], Tensor]  # states [S, B, n_state] -> sampled actions [S, B]


@dataclass(frozen=True, slots=True)
class ValueBatch:
    """Transitions for one update of Q; S seeds, N each."""

    state: Tensor  # [S, N, n_state]
    action: Tensor  # [S, N]
    reward: Tensor  # [S, N]
    continuation: Tensor  # [S, N] chance that the episode goes on
    next_state: Tensor  # [S, N, n_state]
    weight: Tensor  # [S, N] chance that the rollout came so far; 1 for replayed rows


class Source(Protocol):
    def draw(self, n: int, policy: Policy) -> ValueBatch:
        """n transitions of each seed; n counts imagined ones too, so that sources can be compared."""
        ...


@dataclass(frozen=True)
class Replayed:
    """What happened, with the actions of that time."""

    memory: Memory
    streams: Streams

    def draw(self, n: int, policy: Policy) -> ValueBatch:
        rows = self.memory.sample(self.streams, n)
        goes_on = (~rows.is_terminal).float()
        return ValueBatch(
            rows.observation, rows.action, rows.reward, goes_on, rows.next_observation, torch.ones_like(rows.reward)
        )


@dataclass(frozen=True)
class Rollouts:
    """n / length imagined paths of `length` steps from replayed observations, with the policy's own actions."""

    memory: Memory
    model: Model
    length: int
    streams: Streams

    def draw(self, n: int, policy: Policy) -> ValueBatch:
        if n % self.length:
            raise ValueError(f"a batch of {n} transitions does not divide into rollouts of {self.length} steps")
        rows = self.memory.sample(self.streams, n // self.length)
        state = self.model.encode(rows.observation, self.streams)
        states, actions, steps = [state], [], []
        for _ in range(self.length):
            actions.append(policy(states[-1]))
            steps.append(self.model.imagine(states[-1], actions[-1], self.streams))
            states.append(steps[-1].next_state)
        return ValueBatch(
            state=torch.cat(states[:-1], 1),
            action=torch.cat(actions, 1),
            reward=torch.cat([step.reward for step in steps], 1),
            continuation=torch.cat([step.continuation for step in steps], 1),
            next_state=torch.cat(states[1:], 1),
            weight=torch.cat(reached(steps), 1),
        )


def reached(steps: list[Imagined]) -> list[Tensor]:
    """[S, B] of each step k the chance that the rollout is still going:  w_0 = 1,  w_{k+1} = w_k · c_k."""
    weights = [torch.ones_like(steps[0].continuation)]
    for step in steps[:-1]:
        weights.append(weights[-1] * step.continuation)
    return weights
