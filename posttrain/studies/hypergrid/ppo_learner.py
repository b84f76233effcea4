"""PPO on a hypergrid with generalised advantages (arXiv 1707.06347, 1506.02438), for reward and for soft reward."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.control.gflownet.exact import terminal_distribution, uniform_backward
from posttrain.control.gflownet.hypergrid import Hypergrid
from posttrain.control.gflownet.rollouts import Trajectories, sample_forward
from posttrain.studies.hypergrid.network import cell_network
from posttrain.studies.hypergrid.sample_log import SampleLog
from posttrain.training.ema import update_ema


class Gain(StrEnum):
    """What PPO adds up along a trajectory."""

    REWARD = "reward"  # R(x) at the stop, divided by the mean of what was earned so far; an entropy bonus in the loss
    SOFT = "soft"  # log P_B of each move, log R(x) at the stop, −log P_F of each step: its best policy samples R/Z


@dataclass(frozen=True, slots=True)
class PpoSettings:
    batch_size: int  # trajectories of a round
    n_epochs: int
    n_minibatches: int
    width: int
    learning_rate: float
    clip: float
    entropy: float  # weight of the bonus, for Gain.REWARD
    gae_decay: float  # λ; episodes are short and γ = 1
    average_decay: float  # of the average of the weights, which is what is evaluated


class PpoLearner:
    """An update is a round: trajectories, their advantages, then epochs of minibatches of their steps."""

    def __init__(self, grid: Hypergrid, gain: Gain, settings: PpoSettings, *, seed: int) -> None:
        self.grid, self.gain, self.settings = grid, gain, settings
        graph = grid.graph
        self.generator = torch.Generator().manual_seed(seed)
        self.network = cell_network(grid, graph.n_moves + 2, width=settings.width, generator=self.generator)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate, fused=True)
        self.one_hot, self.is_legal = grid.one_hot(), graph.is_legal
        self.states = torch.arange(graph.n_states)
        self.log_pb = torch.where(graph.is_parent, uniform_backward(graph), 0.0).float()
        self.log = SampleLog(grid)
        self.earned, self.n_earned = 0.0, 0

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        """One round."""
        with torch.no_grad():
            log_pf, value = self._policy_and_value(self.network, self.states)
        trajectories = sample_forward(
            self.grid.graph, log_pf.exp().__getitem__, self.settings.batch_size, self.generator
        )
        self.log.add(trajectories.end, n_states=trajectories.n_visited)
        old_logp = log_pf[trajectories.state, trajectories.action]
        gain = self._gain(trajectories, old_logp)
        value = value[trajectories.state]
        advantage = generalised_advantage(gain, value, trajectories.is_step, self.settings.gae_decay)
        fields = (trajectories.state, trajectories.action, old_logp, advantage, advantage + value)
        losses = self._improve([field[trajectories.is_step] for field in fields])
        return {"loss": losses, "gain": gain.sum(-1).mean()}

    @torch.no_grad()
    def distribution(self) -> Tensor:
        log_pf, _ = self._policy_and_value(self.average, self.states)
        return terminal_distribution(self.grid.graph, log_pf)

    def evaluate(self) -> Mapping[str, float]:
        return self.log.measure(self.distribution())

    def state(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "average": dict(self.average.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "log": self.log.state(),
            "earned": [self.earned, self.n_earned],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.log.load_state(state["log"])
        self.earned, self.n_earned = state["earned"]

    def _policy_and_value(self, network: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
        output = network(self.one_hot[states])
        log_pf = torch.where(self.is_legal[states], output[:, :-1], -torch.inf).log_softmax(-1)
        return log_pf, output[:, -1]

    def _gain(self, trajectories: Trajectories, logp: Tensor) -> Tensor:
        """[B, T], 0 in the padding."""
        graph = self.grid.graph
        is_stop = trajectories.is_step & (trajectories.action == graph.n_moves)
        log_reward = graph.log_reward[trajectories.end].float()[:, None]
        if self.gain is Gain.REWARD:
            reward = log_reward.exp()
            self.earned, self.n_earned = self.earned + float(reward.sum()), self.n_earned + len(reward)
            return torch.where(is_stop, reward * self.n_earned / self.earned, 0.0)
        after = torch.cat((trajectories.state[:, 1:], trajectories.state[:, -1:]), dim=-1)
        log_pb = self.log_pb[after, trajectories.action.clamp(max=graph.n_moves - 1)]
        return torch.where(trajectories.is_step, torch.where(is_stop, log_reward, log_pb) - logp, 0.0)

    def _improve(self, steps: list[Tensor]) -> Tensor:
        losses = []
        for _ in range(self.settings.n_epochs):
            order = torch.randperm(len(steps[0]), generator=self.generator)
            for part in order.chunk(self.settings.n_minibatches):
                loss = self._loss(*(field[part] for field in steps))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                update_ema(self.average, self.network, decay=self.settings.average_decay)
                losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _loss(self, state: Tensor, action: Tensor, old_logp: Tensor, advantage: Tensor, target: Tensor) -> Tensor:
        log_pf, value = self._policy_and_value(self.network, state)
        ratio = (log_pf.gather(-1, action[:, None])[:, 0] - old_logp).exp()
        clipped = ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage).mean()
        loss = -surrogate + 0.5 * (value - target).square().mean()
        if self.gain is Gain.REWARD:
            finite = torch.where(self.is_legal[state], log_pf, 0.0)
            entropy = -(log_pf.exp() * finite).sum(-1).mean()
            loss = loss - self.settings.entropy * entropy
        return loss


def generalised_advantage(gain: Tensor, value: Tensor, is_step: Tensor, decay: float) -> Tensor:
    """[B, T] Σ_k λ^k δ_{t+k} with δ_t = gain_t + V(s_{t+1}) − V(s_t), V = 0 after the last step; 0 in the padding."""
    advantage = torch.zeros_like(gain)
    later = torch.zeros_like(gain[:, 0])
    after = torch.zeros_like(later)
    for t in range(gain.shape[1] - 1, -1, -1):
        later = torch.where(is_step[:, t], gain[:, t] + after - value[:, t] + decay * later, 0.0)
        after = torch.where(is_step[:, t], value[:, t], 0.0)
        advantage[:, t] = later
    return advantage
