"""What a GFlowNet on molecules is compared with at the same number of evaluated molecules: chance and MARS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from posttrain.control.molecules.environment import EMPTY, Action, MoleculeEnvironment
from posttrain.control.molecules.molecule import Molecule
from posttrain.studies.molecules.encoding import MoleculeEncoder
from posttrain.studies.molecules.evaluations import Evaluations
from posttrain.studies.molecules.network import MoleculeNetwork
from posttrain.studies.molecules.saving import molecule_from, plain_molecule


def random_molecule(environment: MoleculeEnvironment, generator: Generator) -> Molecule:
    """Blocks and sites drawn uniformly up to a size drawn uniformly among those allowed, or until no stem is left."""
    size = environment.min_blocks + _below(environment.max_blocks - environment.min_blocks + 1, generator)
    molecule = EMPTY
    while len(molecule) < size and not environment.must_stop(molecule):
        column = _below(environment.n_actions(molecule), generator)
        molecule = environment.step(molecule, Action(*divmod(column, len(environment.blocks))))
    return molecule


class RandomLearner:
    """Learns nothing: the floor."""

    def __init__(
        self, environment: MoleculeEnvironment, evaluations: Evaluations, batch_size: int, generator: Generator
    ) -> None:
        self.environment, self.evaluations = environment, evaluations
        self.batch_size, self.generator = batch_size, generator

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        drawn = [random_molecule(self.environment, self.generator) for _ in range(self.batch_size)]
        log_rewards = self.evaluations.log_rewards(drawn)
        return {"log_reward": sum(log_rewards) / len(drawn), "n_blocks": sum(map(len, drawn)) / len(drawn)}

    def evaluate(self) -> Mapping[str, float]:
        return self.evaluations.measure()

    def state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "evaluations": self.evaluations.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.evaluations.load_state(state["evaluations"])


@dataclass(frozen=True, slots=True)
class MarsSettings:
    n_chains: int  # one edit of each is evaluated per step
    n_updates: int  # of the proposal, per step
    update_batch: int
    n_kept: int  # last improving edits, which the proposal imitates
    learning_rate: float


RESTART = -1  # choice of an edit that puts a new molecule in the place of one that no edit changes


class Edit(NamedTuple):
    """A proposed change of a molecule."""

    is_addition: bool
    choice: int  # column of Scores.logits, or the node taken off
    result: Molecule


class MarsLearner:
    """Markov chains of edits with a proposal that learns to imitate improving edits (MARS, arXiv 2103.10432).

    A block is added or taken off with probability 1/2 each, where both can be done. An edit from x to x' is accepted
    with probability min(1, R(x') / R(x)), without the Hastings ratio of the proposals, as in the released comparison:
    the chains search, and do not sample R.
    """

    def __init__(
        self,
        network: MoleculeNetwork,
        encoder: MoleculeEncoder,
        evaluations: Evaluations,
        settings: MarsSettings,
        generator: Generator,
    ) -> None:
        self.network, self.encoder, self.evaluations = network, encoder, evaluations
        self.settings, self.generator = settings, generator
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self.chains: list[Molecule] = []
        self.log_rewards: list[float] = []
        self.improving: list[tuple[Molecule, bool, int]] = []  # molecule, and an edit that improved it

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        if not self.chains:
            environment = self.encoder.environment
            self.chains = [random_molecule(environment, self.generator) for _ in range(self.settings.n_chains)]
            self.log_rewards = self.evaluations.log_rewards(self.chains)
            return self._numbers(accepted=1.0)
        edits = self._propose()
        log_rewards = self.evaluations.log_rewards([edit.result for edit in edits])
        chance = torch.rand(len(edits), generator=self.generator).tolist()
        n_accepted = 0
        for chain, (edit, new, u) in enumerate(zip(edits, log_rewards, chance, strict=True)):
            gained = new - self.log_rewards[chain]
            if gained > 0 and edit.choice != RESTART:
                self.improving.append((self.chains[chain], edit.is_addition, edit.choice))
            if u < math.exp(min(0.0, gained)):
                self.chains[chain], self.log_rewards[chain] = edit.result, new
                n_accepted += 1
        self.improving = self.improving[-self.settings.n_kept :]
        self._imitate()
        return self._numbers(accepted=n_accepted / len(edits))

    def evaluate(self) -> Mapping[str, float]:
        return self.evaluations.measure()

    def _propose(self) -> list[Edit]:
        with torch.no_grad():
            scores = self.network(self.encoder.encode(self.chains))
        removal = scores.removal.split([len(molecule) for molecule in self.chains])
        return [self._edit(*of_chain) for of_chain in zip(self.chains, scores.logits, removal, strict=True)]

    def _edit(self, molecule: Molecule, logits: Tensor, removal: Tensor) -> Edit:
        environment = self.encoder.environment
        may_add = environment.n_actions(molecule) > 0
        may_remove = len(molecule) > environment.min_blocks
        if not may_add and not may_remove:  # the smallest molecule without a stem
            return Edit(False, RESTART, random_molecule(environment, self.generator))
        if may_add and (not may_remove or _below(2, self.generator)):
            column = int(torch.multinomial(logits[:-1].softmax(-1), 1, generator=self.generator))
            child = environment.step(molecule, Action(*divmod(column, len(environment.blocks))))
            return Edit(True, column, child)
        parents = {step.removed: step.parent for step in environment.steps_into(molecule)}
        nodes = list(parents)
        node = nodes[int(torch.multinomial(removal[nodes].softmax(-1), 1, generator=self.generator))]
        return Edit(False, node, parents[node])

    def _imitate(self) -> None:
        """Raise the log-probability of improving edits."""
        if not self.improving:
            return
        for _ in range(self.settings.n_updates):
            places = torch.randint(len(self.improving), (self.settings.update_batch,), generator=self.generator)
            loss = -self._logp([self.improving[place] for place in places.tolist()]).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _logp(self, edits: Sequence[tuple[Molecule, bool, int]]) -> Tensor:
        molecules = [molecule for molecule, _, _ in edits]
        scores = self.network(self.encoder.encode(molecules))
        removal = scores.removal.split([len(molecule) for molecule in molecules])
        logp: list[Tensor] = []
        for (molecule, is_addition, choice), logits, of_nodes in zip(edits, scores.logits, removal, strict=True):
            if is_addition:
                logp.append(logits[:-1].log_softmax(-1)[choice])
            else:
                nodes = list(dict.fromkeys(s.removed for s in self.encoder.environment.steps_into(molecule)))
                logp.append(of_nodes[nodes].log_softmax(-1)[nodes.index(choice)])
        return torch.stack(logp)

    def _numbers(self, *, accepted: float) -> dict[str, float]:
        n_blocks = sum(map(len, self.chains)) / len(self.chains)
        mean = sum(self.log_rewards) / len(self.log_rewards)
        return {"log_reward": mean, "accepted": accepted, "n_blocks": n_blocks}

    def state(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "evaluations": self.evaluations.state(),
            "chains": [plain_molecule(molecule) for molecule in self.chains],
            "log_rewards": list(self.log_rewards),
            "improving": [[plain_molecule(molecule), added, choice] for molecule, added, choice in self.improving],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.evaluations.load_state(state["evaluations"])
        self.chains = [molecule_from(plain) for plain in state["chains"]]
        self.log_rewards = list(state["log_rewards"])
        self.improving = [(molecule_from(plain), added, choice) for plain, added, choice in state["improving"]]


def _below(n: int, generator: Generator) -> int:
    return int(torch.randint(n, (), generator=generator))
