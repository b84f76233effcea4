"""A partial molecule as a tree of fragments, and what a symmetry of it exchanges.

Codes are nested tuples. The code of a piece, seen from one of its nodes, lists what stands at which atom of that node:
stems, a mark, and the codes of the branches; among the orders that the symmetries of the fragment allow, the least.
So two codes are equal exactly if an isomorphism of fragments, bonds and stems maps one piece on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from posttrain.control.molecules.blocks import Fragment

Code = tuple[Any, ...]
_STEM: Code = ()  # it and the mark sort before (fragment, ...), the code of a branch
_MARK: Code = (-1,)


class Bond(NamedTuple):
    """A single bond between atoms of two nodes."""

    node: int
    atom: int
    other: int
    other_atom: int


class Site(NamedTuple):
    """An atom of a node that takes a block."""

    node: int
    atom: int


@dataclass(frozen=True, slots=True)
class Molecule:
    """Nodes are numbered in the order in which they were added; isomorphic molecules may differ in it."""

    fragments: tuple[int, ...] = ()  # of each node, an index in Blocks.fragments
    stems: tuple[tuple[int, ...], ...] = ()  # of each node: free atoms, ascending, as often as they take blocks
    bonds: tuple[Bond, ...] = ()

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.fragments)

    def sites(self) -> tuple[Site, ...]:
        """The atoms that take a block, each once, in the order of nodes and atoms."""
        return tuple(Site(node, atom) for node, stems in enumerate(self.stems) for atom in sorted(set(stems)))

    def leaves(self) -> tuple[Bond, ...]:
        """The bond of every node that has one bond, with that node as `other`."""
        degree = [0] * len(self)
        for bond in self.bonds:
            degree[bond.node] += 1
            degree[bond.other] += 1
        outward = (*self.bonds, *(Bond(b.other, b.other_atom, b.node, b.atom) for b in self.bonds))
        return tuple(bond for bond in outward if degree[bond.other] == 1)

    def without(self, leaf: Bond) -> Molecule:
        """The molecule with the node `leaf.other` taken off and the atom that held it free again."""
        kept = [node for node in range(len(self)) if node != leaf.other]
        place = {node: new for new, node in enumerate(kept)}
        stems = list(self.stems)
        stems[leaf.node] = tuple(sorted((*stems[leaf.node], leaf.atom)))
        return Molecule(
            tuple(self.fragments[node] for node in kept),
            tuple(stems[node] for node in kept),
            tuple(
                Bond(place[b.node], b.atom, place[b.other], b.other_atom)
                for b in self.bonds
                if leaf.other not in (b.node, b.other)
            ),
        )


class Codes:
    """Codes of one molecule's pieces."""

    def __init__(self, fragments: Sequence[Fragment], molecule: Molecule) -> None:
        self._fragments, self._molecule = fragments, molecule
        self._bonds: list[list[tuple[int, int]]] = [[] for _ in range(len(molecule))]  # (atom, node) of each node
        self._attached: dict[tuple[int, int], int] = {}  # (node, neighbour) -> the atom of node that holds it
        for bond in molecule.bonds:
            self._bonds[bond.node].append((bond.atom, bond.other))
            self._bonds[bond.other].append((bond.other_atom, bond.node))
            self._attached[bond.node, bond.other] = bond.atom
            self._attached[bond.other, bond.node] = bond.other_atom
        self._branches: dict[tuple[int, int], Code] = {}

    def branch(self, node: int, seen_from: int) -> Code:
        """What hangs on the bond from `seen_from` to `node`, with the atom of `node` that takes the bond marked."""
        if (node, seen_from) not in self._branches:
            self._branches[node, seen_from] = self._rooted(node, self._attached[node, seen_from], seen_from)
        return self._branches[node, seen_from]

    def node(self, node: int) -> Code:
        """The molecule seen from a node: equal for nodes that a symmetry exchanges."""
        return self._rooted(node, None, None)

    def site(self, site: Site) -> Code:
        """The molecule with one atom marked: equal for sites that a symmetry exchanges."""
        return self._rooted(site.node, site.atom, None)

    def molecule(self) -> Code:
        """Equal for isomorphic molecules."""
        return min((self.node(node) for node in range(len(self._molecule))), default=())

    def _rooted(self, node: int, mark: int | None, seen_from: int | None) -> Code:
        at_atoms = [(atom, _STEM) for atom in self._molecule.stems[node]]
        at_atoms += [(atom, self.branch(to, node)) for atom, to in self._bonds[node] if to != seen_from]
        if mark is not None:
            at_atoms.append((mark, _MARK))
        return single_code(self._fragments, self._molecule.fragments[node], at_atoms)


def single_code(fragments: Sequence[Fragment], fragment: int, at_atoms: Sequence[tuple[int, Code]]) -> Code:
    """The code of one node with codes at its atoms."""
    symmetries = fragments[fragment].symmetries
    return (fragment, min(tuple(sorted((g[atom], code) for atom, code in at_atoms)) for g in symmetries))


def joined_code(fragments: Sequence[Fragment], fragment: int, attach: int, stems: Sequence[int]) -> Code:
    """The code of a branch of one node: a block that has just joined."""
    return single_code(fragments, fragment, [*((atom, _STEM) for atom in stems), (attach, _MARK)])
