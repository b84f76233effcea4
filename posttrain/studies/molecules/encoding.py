"""Batches of partial molecules as flat index tensors for the network.

Atoms enter by their class and pairs of atoms by theirs (posttrain.control.molecules.blocks), so that molecules that a
symmetry maps on one another are encoded alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.control.molecules.blocks import Blocks
from posttrain.control.molecules.environment import MoleculeEnvironment
from posttrain.control.molecules.molecule import Molecule


@dataclass(frozen=True, slots=True)
class MoleculeBatch:
    """G molecules: N nodes, E directed bonds, S sites. Everything is int64 but the masks."""

    node_fragment: Tensor  # [N]
    node_graph: Tensor  # [N]
    stem_node: Tensor  # [K] the node of each stem, and
    stem_atom: Tensor  # [K] its atom
    bond_source: Tensor  # [E] node
    bond_target: Tensor  # [E] node
    bond_out: Tensor  # [E] atom of the source
    bond_in: Tensor  # [E] atom of the target
    turn_from: Tensor  # [P] a bond into a node, and
    turn_to: Tensor  # [P] another bond out of that node
    turn_pair: Tensor  # [P] their pair of atoms
    site_node: Tensor  # [S]
    site_atom: Tensor  # [S]
    view_from: Tensor  # [Q] a bond into the node of a site, and
    view_site: Tensor  # [Q] that site
    view_pair: Tensor  # [Q] their pair of atoms
    site_row: Tensor  # [G, W] site of each column, S for the empty molecule's one site, S + 1 for none
    may_stop: Tensor  # [G] bool
    n_blocks: Tensor  # [G]


_PADDED = ("site_row",)


class MoleculeEncoder:
    """Numbers for the fragments, atom classes and pair classes of a set of blocks, and batches made with them."""

    def __init__(self, environment: MoleculeEnvironment) -> None:
        self.environment = environment
        self.atoms, self.n_atoms = _number_atoms(environment.blocks)
        self.pairs, self.n_pairs = _number_pairs(environment.blocks)

    def encode(self, molecules: Sequence[Molecule]) -> MoleculeBatch:
        lists: dict[str, list[int]] = {name: [] for name in MoleculeBatch.__slots__ if name not in _PADDED}
        rows: list[range] = []
        for graph, molecule in enumerate(molecules):
            n_sites = len(lists["site_node"])
            self._append(lists, molecule, graph)
            rows.append(range(n_sites, len(lists["site_node"])))
        n_sites, width = len(lists["site_node"]), max(1, *(len(row) for row in rows))
        padded = [
            [*row, *[n_sites + 1] * (width - len(row))] if len(molecule) else [n_sites, *[n_sites + 1] * (width - 1)]
            for row, molecule in zip(rows, molecules, strict=True)
        ]
        may_stop = torch.tensor(lists.pop("may_stop"), dtype=torch.bool)
        tensors = {name: torch.tensor(values, dtype=torch.int64) for name, values in lists.items()}
        return MoleculeBatch(**tensors, may_stop=may_stop, site_row=torch.tensor(padded))

    def _append(self, lists: dict[str, list[int]], molecule: Molecule, graph: int) -> None:
        lists["may_stop"].append(self.environment.may_stop(molecule))
        lists["n_blocks"].append(len(molecule))
        first = len(lists["node_fragment"])
        lists["node_fragment"] += molecule.fragments
        lists["node_graph"] += [graph] * len(molecule)
        for node, stems in enumerate(molecule.stems):
            lists["stem_node"] += [first + node] * len(stems)
            lists["stem_atom"] += [self.atoms[molecule.fragments[node]][atom] for atom in stems]
        into = self._append_bonds(lists, molecule, first)
        if self.environment.n_actions(molecule):
            self._append_sites(lists, molecule, first, into)

    def _append_bonds(
        self, lists: dict[str, list[int]], molecule: Molecule, first: int
    ) -> list[list[tuple[int, int, int]]]:
        """Returns the bonds into each node as (number, node they come from, atom they come to)."""
        into: list[list[tuple[int, int, int]]] = [[] for _ in range(len(molecule))]
        outward = [(b.node, b.atom, b.other, b.other_atom) for b in molecule.bonds]
        outward += [(other, other_atom, node, atom) for node, atom, other, other_atom in outward]
        first_bond = len(lists["bond_source"])
        for number, (node, atom, other, other_atom) in enumerate(outward, start=first_bond):
            lists["bond_source"].append(first + node)
            lists["bond_target"].append(first + other)
            lists["bond_out"].append(self.atoms[molecule.fragments[node]][atom])
            lists["bond_in"].append(self.atoms[molecule.fragments[other]][other_atom])
            into[other].append((number, node, other_atom))
        for number, (node, atom, other, _) in enumerate(outward, start=first_bond):
            pairs = self.pairs[molecule.fragments[node]]
            for incoming, origin, at in into[node]:
                if origin != other:
                    lists["turn_from"].append(incoming)
                    lists["turn_to"].append(number)
                    lists["turn_pair"].append(pairs[at][atom])
        return into

    def _append_sites(
        self, lists: dict[str, list[int]], molecule: Molecule, first: int, into: list[list[tuple[int, int, int]]]
    ) -> None:
        for site in molecule.sites():
            number = len(lists["site_node"])
            fragment = molecule.fragments[site.node]
            lists["site_node"].append(first + site.node)
            lists["site_atom"].append(self.atoms[fragment][site.atom])
            for incoming, _, at in into[site.node]:
                lists["view_from"].append(incoming)
                lists["view_site"].append(number)
                lists["view_pair"].append(self.pairs[fragment][at][site.atom])


def _number_atoms(blocks: Blocks) -> tuple[list[list[int]], int]:
    numbers: dict[tuple[int, int], int] = {}
    of_fragment = [
        [numbers.setdefault((index, kind), len(numbers)) for kind in fragment.atom_class]
        for index, fragment in enumerate(blocks.fragments)
    ]
    return of_fragment, len(numbers)


def _number_pairs(blocks: Blocks) -> tuple[list[list[list[int]]], int]:
    numbers: dict[tuple[int, int], int] = {}
    of_fragment = [
        [[numbers.setdefault((index, kind), len(numbers)) for kind in row] for row in fragment.pair_class]
        for index, fragment in enumerate(blocks.fragments)
    ]
    return of_fragment, len(numbers)
