"""A GFlowNet over molecules: trajectories by its own policy, replayed ones from good molecules, one update a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from posttrain.control.molecules.environment import MoleculeEnvironment
from posttrain.control.molecules.molecule import Molecule
from posttrain.studies.molecules.encoding import MoleculeEncoder
from posttrain.studies.molecules.evaluations import Evaluations
from posttrain.studies.molecules.flow_losses import FlowLoss
from posttrain.studies.molecules.network import MoleculeNetwork
from posttrain.studies.molecules.saving import molecule_from, plain_molecule
from posttrain.studies.molecules.trajectories import Trajectory, draw_backward, draw_forward


@dataclass(frozen=True, slots=True)
class GflownetSettings:
    batch_size: int  # molecules drawn and evaluated per step
    n_replayed: int  # trajectories per step that lead back from the best molecules so far
    n_kept: int  # best molecules to lead back from
    exploration: float  # probability of a uniformly drawn action
    learning_rate: float
    log_z_learning_rate: float
    initial_log_z: float
    max_grad_norm: float


class GflownetLearner:
    """Learns P(x) ∝ R(x)."""

    def __init__(
        self,
        network: MoleculeNetwork,
        encoder: MoleculeEncoder,
        evaluations: Evaluations,
        loss: FlowLoss,
        settings: GflownetSettings,
        generator: Generator,
    ) -> None:
        self.network, self.encoder, self.evaluations = network, encoder, evaluations
        self.loss, self.settings, self.generator = loss, settings, generator
        self.log_z = nn.Parameter(torch.tensor(settings.initial_log_z))
        policy = {"params": list(network.parameters()), "lr": settings.learning_rate}
        self.optimizer = torch.optim.Adam([policy, {"params": [self.log_z], "lr": settings.log_z_learning_rate}])
        self.kept: list[tuple[float, Molecule]] = []  # (log R, molecule), the best first

    @property
    def environment(self) -> MoleculeEnvironment:
        return self.encoder.environment

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        drawn = self._draw()
        log_rewards = self.evaluations.log_rewards([trajectory.molecule for trajectory in drawn])
        replayed = self._replay()
        self._keep(list(zip(log_rewards, (trajectory.molecule for trajectory in drawn), strict=True)))
        trajectories = [*drawn, *(trajectory for _, trajectory in replayed)]
        log_reward = torch.tensor([*log_rewards, *(value for value, _ in replayed)])
        loss = self.loss(self, trajectories, log_reward)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        n_blocks = sum(len(trajectory.molecule) for trajectory in drawn) / len(drawn)
        mean = sum(log_rewards) / len(log_rewards)
        numbers = {"loss": loss.detach(), "grad_norm": norm, "log_reward": mean, "n_blocks": n_blocks}
        return {**numbers, "log_z": self.loss.log_z(self)}

    def evaluate(self) -> Mapping[str, float]:
        return self.evaluations.measure()

    def logits(self, molecules: Sequence[Molecule]) -> Tensor:
        """[G, W * A + 1] unnormalised, with gradient."""
        return self.network(self.encoder.encode(molecules)).logits

    def _draw(self) -> list[Trajectory]:
        with torch.no_grad():
            return draw_forward(
                self.environment,
                self.logits,
                self.settings.batch_size,
                exploration=self.settings.exploration,
                generator=self.generator,
            )

    def _replay(self) -> list[tuple[float, Trajectory]]:
        if not self.kept:
            return []
        places = torch.randint(len(self.kept), (self.settings.n_replayed,), generator=self.generator).tolist()
        chosen = [self.kept[place] for place in places]
        return [(value, draw_backward(self.environment, molecule, self.generator)) for value, molecule in chosen]

    def _keep(self, found: Sequence[tuple[float, Molecule]]) -> None:
        """The best of those kept and those found; of isomorphic ones the first."""
        different: dict[Any, tuple[float, Molecule]] = {}
        for value, molecule in (*self.kept, *found):
            different.setdefault(self.environment.code(molecule), (value, molecule))
        self.kept = sorted(different.values(), key=lambda entry: -entry[0])[: self.settings.n_kept]

    def state(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "log_z": self.log_z.detach(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "evaluations": self.evaluations.state(),
            "kept": [[value, plain_molecule(molecule)] for value, molecule in self.kept],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        with torch.no_grad():
            self.log_z.copy_(state["log_z"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.evaluations.load_state(state["evaluations"])
        self.kept = [(value, molecule_from(plain)) for value, plain in state["kept"]]
