"""Molecules as a GFlowNet's DAG: a block is added at a time, and the molecule is finished by a stop.

Isomorphic molecules are one state. Actions are counted on the drawn molecule, where several may be one and the same
step: on a bare benzene ring all six sites are alike. A step of the DAG is a class of actions that the molecule's
symmetries exchange, and backward a class of removals, so with n blocks that could be removed

    P_F(step) = count · π(action)      P_B(step) = removal_count / n

are distributions over steps. With both counts left out, a loss of 0 gives a molecule x not a share R(x) but R(x) times
the mean over its backward paths of Π count / removal_count. π has to give like actions like probabilities, which a
network does that sees symmetric atoms alike. Two steps may lead to the same state (a chain of equal blocks, head to
tail, grows at either end); they stay two, which changes no terminal probability.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from posttrain.control.molecules.blocks import Blocks
from posttrain.control.molecules.molecule import Bond, Code, Codes, Molecule, joined_code

EMPTY = Molecule()


class Action(NamedTuple):
    """Add `block` at site number `site` of Molecule.sites(); the empty molecule has one site, number 0."""

    site: int
    block: int


@dataclass(frozen=True, slots=True)
class Step:
    """A step into a molecule: removing one of its blocks leads to `parent`, from which `action` leads back."""

    removed: int  # the node
    parent: Molecule
    action: Action
    count: int  # actions of the parent that its symmetries make one with this
    removal_count: int  # removals from the molecule that its symmetries make one with this


class MoleculeEnvironment:
    """Which steps there are, forward and backward. Holds no state of its own."""

    def __init__(self, blocks: Blocks, *, min_blocks: int = 2, max_blocks: int = 8) -> None:
        if not 1 <= min_blocks <= max_blocks:
            raise ValueError(f"min_blocks {min_blocks}, max_blocks {max_blocks}: needed 1 <= min_blocks <= max_blocks")
        self.blocks, self.min_blocks, self.max_blocks = blocks, min_blocks, max_blocks
        self._first: dict[Code, list[int]] = {}  # blocks that make the same molecule when they come first
        self._joined: dict[Code, list[int]] = {}  # blocks that are the same once joined
        for index, block in enumerate(blocks.blocks):
            alone = Codes(blocks.fragments, self.step(EMPTY, Action(0, index))).molecule()
            self._first.setdefault(alone, []).append(index)
            joined = joined_code(blocks.fragments, block.fragment, block.attach, block.stems)
            self._joined.setdefault(joined, []).append(index)

    def n_actions(self, molecule: Molecule) -> int:
        """How many ways there are to add a block; 0 where the molecule must stop."""
        if len(molecule) == 0:
            return len(self.blocks)
        return 0 if self.must_stop(molecule) else len(molecule.sites()) * len(self.blocks)

    def may_stop(self, molecule: Molecule) -> bool:
        return len(molecule) >= self.min_blocks or self.must_stop(molecule)

    def must_stop(self, molecule: Molecule) -> bool:
        """Whether no block can be added: the molecule is full, or has no stem."""
        return len(molecule) >= self.max_blocks or (len(molecule) > 0 and not any(molecule.stems))

    def step(self, molecule: Molecule, action: Action) -> Molecule:
        """The molecule with one block more."""
        block = self.blocks.blocks[action.block]
        if len(molecule) == 0:
            return Molecule((block.fragment,), (block.stems_as_first,))
        site = molecule.sites()[action.site]
        stems = list(molecule.stems)
        taken = list(stems[site.node])
        taken.remove(site.atom)
        stems[site.node] = tuple(taken)
        bond = Bond(site.node, site.atom, len(molecule), block.attach)
        return Molecule((*molecule.fragments, block.fragment), (*stems, block.stems), (*molecule.bonds, bond))

    def steps_into(self, molecule: Molecule) -> list[Step]:
        """One entry for each removal that a single action undoes; removals that symmetries make one are all listed.

        A block that came first is removed only if some block, joined where it is joined, leaves the same stems.
        """
        if len(molecule) <= 1:
            alone = Codes(self.blocks.fragments, molecule).molecule()
            return [Step(0, EMPTY, Action(0, block), 1, 1) for block in self._first.get(alone, ())]
        codes = Codes(self.blocks.fragments, molecule)
        leaves = [(leaf, self._joined.get(codes.branch(leaf.other, leaf.node), ())) for leaf in molecule.leaves()]
        alike = Counter(codes.node(leaf.other) for leaf, _ in leaves)
        steps: list[Step] = []
        for leaf, blocks in leaves:
            if blocks:
                parent = molecule.without(leaf)
                site = (leaf.node - (leaf.other < leaf.node), leaf.atom)
                number = parent.sites().index(site)
                count = self.site_counts(parent)[number]
                removal_count = alike[codes.node(leaf.other)]
                steps += [Step(leaf.other, parent, Action(number, block), count, removal_count) for block in blocks]
        return steps

    def site_counts(self, molecule: Molecule) -> list[int]:
        """For each site, how many sites the molecule's symmetries exchange with it, itself included."""
        codes = Codes(self.blocks.fragments, molecule)
        of_site = [codes.site(site) for site in molecule.sites()]
        alike = Counter(of_site)
        return [alike[code] for code in of_site]

    def code(self, molecule: Molecule) -> Code:
        """The same for isomorphic molecules, and for no others."""
        return Codes(self.blocks.fragments, molecule).molecule()

    def log_counts(self, molecule: Molecule, action: Action, child: Molecule) -> tuple[float, float]:
        """log count and log P_B of the step that `action` makes from `molecule` to `child`."""
        if len(molecule) == 0:
            return 0.0, -math.log(len(self._first[self.code(child)]))
        codes = Codes(self.blocks.fragments, child)
        leaves = child.leaves()
        n_removals = sum(len(self._joined.get(codes.branch(leaf.other, leaf.node), ())) for leaf in leaves)
        added = codes.node(len(molecule))
        n_alike = sum(codes.node(leaf.other) == added for leaf in leaves)
        return math.log(self.site_counts(molecule)[action.site]), math.log(n_alike / n_removals)
