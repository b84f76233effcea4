"""All molecules of a small environment, and what a policy makes of them, by listing every drawn action.

Nothing here knows of symmetries: an action is one way to put a block on one drawn molecule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from posttrain.control.molecules.blocks import Blocks, make_blocks
from posttrain.control.molecules.chemistry import assemble, smiles_of
from posttrain.control.molecules.environment import EMPTY, Action, MoleculeEnvironment
from posttrain.control.molecules.molecule import Molecule

Policy = Callable[[Molecule], Sequence[float]]  # probabilities of the actions in order, of the stop last

MICRO_BLOCKS: dict[str, Blocks] = {
    # A ring with 12 symmetries, a linker with 2, an end.
    "symmetric": make_blocks(
        [("benzene", "c1ccccc1", [0, 1, 2, 3, 4, 5]), ("ethylene", "CC", [0, 1]), ("fluorine", "F", [0])]
    ),
    # Head-to-tail chains, which grow at either end to the same molecule; two blocks that are one molecule when first.
    "chains": make_blocks([("head", "C1CCNCC1", [3, 0]), ("tail", "C1CCNCC1", [0, 3]), ("chlorine", "Cl", [0])]),
    # Atoms that take several blocks, and a ring whose two blocks leave different stems, so some leaves stay.
    "uneven": make_blocks(
        [
            ("methanol", "CO", [1, 0, 0, 0]),
            ("oxolane", "C1CCOC1", [0, 4, 1, 2, 4]),
            ("oxolane-2", "C1CCOC1", [2, 4, 0, 1, 4]),
        ]
    ),
}


@dataclass
class States:
    """Every state of an environment, one molecule for each class of isomorphic ones, smaller ones first."""

    environment: MoleculeEnvironment
    molecules: list[Molecule] = field(default_factory=list)
    place: dict[object, int] = field(default_factory=dict)  # of the code
    children: list[list[int]] = field(default_factory=list)  # of each action in order

    def __post_init__(self) -> None:
        self._add(EMPTY)
        for molecule in self.molecules:  # grows while it is walked
            after = [self.environment.step(molecule, action) for action in self.actions(molecule)]
            self.children.append([self._add(child) for child in after])

    def actions(self, molecule: Molecule) -> list[Action]:
        n_blocks = len(self.environment.blocks)
        return [Action(*divmod(column, n_blocks)) for column in range(self.environment.n_actions(molecule))]

    def is_terminal(self) -> np.ndarray:
        return np.array([self.environment.may_stop(molecule) for molecule in self.molecules])

    def smiles(self) -> list[str]:
        return ["" if m == EMPTY else smiles_of(assemble(self.environment.blocks, m)[0]) for m in self.molecules]

    def terminal_distribution(self, policy: Policy) -> np.ndarray:
        """[n] the probability of stopping at each state: μ(s') = Σ μ(s) π(a|s), P(x) = μ(x) π(stop|x)."""
        visits, stops = np.zeros(len(self.molecules)), np.zeros(len(self.molecules))
        visits[0] = 1.0
        for index, molecule in enumerate(self.molecules):
            *add, stop = policy(molecule)
            for child, p in zip(self.children[index], add, strict=True):
                visits[child] += visits[index] * p
            stops[index] = visits[index] * stop
        return stops

    def _add(self, molecule: Molecule) -> int:
        code = self.environment.code(molecule)
        if code not in self.place:
            self.place[code] = len(self.molecules)
            self.molecules.append(molecule)
        return self.place[code]
