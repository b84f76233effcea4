"""PPO on the assembly of molecules, the reinforcement-learning baseline.

The coefficient of the entropy is to it what the exponent of R is to a GFlowNet, with the difference that the
distribution it ends at has no simple form: advantages are rescaled in every batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from posttrain.studies.molecules.encoding import MoleculeEncoder
from posttrain.studies.molecules.evaluations import Evaluations
from posttrain.studies.molecules.network import MoleculeNetwork
from posttrain.studies.molecules.trajectories import Trajectory, draw_forward


@dataclass(frozen=True, slots=True)
class PpoSettings:
    batch_size: int  # molecules drawn and evaluated per step
    n_epochs: int  # updates on them, each on all
    clip: float  # of the probability ratio
    gae_decay: float  # λ; the discount is 1
    entropy: float  # coefficient of the policy's entropy
    value: float  # coefficient of the value's squared error
    learning_rate: float
    max_grad_norm: float


class PpoLearner:
    """Clipped policy gradient with generalised advantages.

    The return is the score of the molecule that was made, standardised by mean and deviation over the different
    molecules so far, and not R, of which nearly all molecules have nearly none.
    """

    def __init__(
        self,
        network: MoleculeNetwork,
        encoder: MoleculeEncoder,
        evaluations: Evaluations,
        settings: PpoSettings,
        generator: Generator,
    ) -> None:
        self.network, self.encoder, self.evaluations = network, encoder, evaluations
        self.settings, self.generator = settings, generator
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        with torch.no_grad():
            drawn = draw_forward(
                self.encoder.environment,
                lambda molecules: self.network(self.encoder.encode(molecules)).logits,
                self.settings.batch_size,
                exploration=0.0,
                generator=self.generator,
            )
        log_rewards = self.evaluations.log_rewards([trajectory.molecule for trajectory in drawn])
        numbers = self._update(drawn, self._returns(log_rewards))
        n_blocks = sum(len(trajectory.molecule) for trajectory in drawn) / len(drawn)
        return {**numbers, "log_reward": sum(log_rewards) / len(log_rewards), "n_blocks": n_blocks}

    def evaluate(self) -> Mapping[str, float]:
        return self.evaluations.measure()

    def _returns(self, log_rewards: list[float]) -> Tensor:
        """[B] standardised scores, the floor applied: (R^(1/exponent) − mean) / deviation."""
        score = (torch.tensor(log_rewards) / self.evaluations.reward.exponent).exp()
        so_far = torch.tensor(list(self.evaluations.best.values())) / self.evaluations.reward.scale
        return (score - so_far.mean()) / so_far.std().clamp(min=0.01)  # all alike: no deviation to divide by

    def _update(self, drawn: list[Trajectory], returns: Tensor) -> dict[str, Tensor]:
        batch = self.encoder.encode([state for trajectory in drawn for state in trajectory.states])
        actions = torch.tensor([action for trajectory in drawn for action in trajectory.actions])
        n_steps = [len(trajectory.states) for trajectory in drawn]
        with torch.no_grad():
            before = self.network(batch)
            logp_before = _chosen(before.logits, actions)
            advantage = torch.cat(
                [
                    advantages(value, result, self.settings.gae_decay)
                    for value, result in zip(before.value.split(n_steps), returns, strict=True)
                ]
            )
            target = advantage + before.value
            advantage = (advantage - advantage.mean()) / advantage.std().clamp(min=1e-3)
        for _ in range(self.settings.n_epochs):
            scores = self.network(batch)
            ratio = (_chosen(scores.logits, actions) - logp_before).exp()
            clipped = ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)
            gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
            value_error = (scores.value - target).square().mean()
            entropy = _entropy(scores.logits).mean()
            loss = -gain + self.settings.value * value_error - self.settings.entropy * entropy
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
            self.optimizer.step()
        return {"gain": gain.detach(), "value_error": value_error.detach(), "entropy": entropy.detach()}

    def state(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "evaluations": self.evaluations.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.evaluations.load_state(state["evaluations"])


def _chosen(logits: Tensor, actions: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return logp.gather(-1, (actions % logp.shape[-1])[:, None]).squeeze(-1)  # the stop is −1, the last column


def _entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    finite = torch.where(logp > -torch.inf, logp, 0.0)  # before the product, whose gradient would be 0 · inf
    return -(logp.exp() * finite).sum(-1)


def advantages(value: Tensor, result: Tensor, decay: float) -> Tensor:
    """[T] Σ_k decay^k · δ_{t+k} with δ_t = V(s_{t+1}) − V(s_t), and the result in place of V after the last step."""
    after = torch.cat((value[1:], result[None]))
    advantage = after - value
    for t in range(len(value) - 2, -1, -1):
        advantage[t] += decay * advantage[t + 1]
    return advantage
