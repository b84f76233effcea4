"""Building blocks of molecules: fragments, where they may be joined, and the symmetries of each.

A fragment is a small molecule; a block is a fragment with the atom by which it is joined to a molecule and the atoms,
its stems, at which further blocks may be joined to it. A stem atom that is named twice takes two blocks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.control.molecules.rdkit_import import rdkit_chem

Permutation = tuple[int, ...]  # atom -> atom
_COLUMNS = ("block_name", "block_smi", "block_r")


class BlocksError(ValueError):
    """A file of blocks that cannot be used; the message names the block and the fix."""


@dataclass(frozen=True, slots=True)
class Fragment:
    smiles: str  # its order of atoms is the one that all atom numbers refer to
    n_atoms: int
    symmetries: tuple[Permutation, ...]  # every permutation of atoms that keeps elements, charges, hydrogens and bonds
    atom_class: tuple[int, ...]  # atoms that a symmetry exchanges share a class: the lowest of their numbers
    pair_class: tuple[tuple[int, ...], ...]  # the same of ordered pairs of atoms: the lowest n_atoms * i + j


@dataclass(frozen=True, slots=True)
class Block:
    name: str
    fragment: int  # index in Blocks.fragments
    attach: int  # atom by which it joins
    stems: tuple[int, ...]  # atoms that take further blocks once it has joined, ascending

    @property
    def stems_as_first(self) -> tuple[int, ...]:
        """The stems of a block that joins nothing: the atom by which it would have joined is free too."""
        return tuple(sorted((*self.stems, self.attach)))


@dataclass(frozen=True, slots=True)
class Blocks:
    fragments: tuple[Fragment, ...]
    blocks: tuple[Block, ...]

    def __len__(self) -> int:
        return len(self.blocks)

    def subset(self, names: Sequence[str]) -> Blocks:
        """The named blocks alone, in the order given. Raises BlocksError for a name that is not there."""
        by_name = {block.name: block for block in self.blocks}
        missing = [name for name in names if name not in by_name]
        if missing:
            raise BlocksError(f"no block {missing[0]!r}: blocks are {', '.join(sorted(by_name))}")
        used = sorted({by_name[name].fragment for name in names})
        return Blocks(
            tuple(self.fragments[index] for index in used),
            tuple(
                Block(name, used.index(by_name[name].fragment), by_name[name].attach, by_name[name].stems)
                for name in names
            ),
        )


def read_blocks(path: Path) -> Blocks:
    """Blocks of a JSON file with the columns block_name, block_smi and block_r, each {"0": ..., "1": ..., ...}.

    block_r lists atoms: first the one by which the block joins, then its stems. Raises BlocksError.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BlocksError(f"{path}: not JSON ({error}): is the download whole?") from error
    if not isinstance(table, dict) or any(not isinstance(table.get(column), dict) for column in _COLUMNS):
        raise BlocksError(f"{path}: needs the columns {', '.join(_COLUMNS)}, each an object from row number to value")
    rows = list(table["block_name"])
    for column in _COLUMNS:
        if list(table[column]) != rows:
            raise BlocksError(f"{path}: {column} has other rows than block_name ({len(table[column])}, {len(rows)})")
    return make_blocks([(table["block_name"][i], table["block_smi"][i], table["block_r"][i]) for i in rows])


def make_blocks(rows: Sequence[tuple[str, str, Sequence[int]]]) -> Blocks:
    """Blocks of (name, SMILES, [joining atom, *stems]). Raises BlocksError where a molecule could not be made."""
    if not rows:
        raise BlocksError("no blocks: at least one is needed")
    fragments: dict[str, Fragment] = {}
    blocks: list[Block] = []
    for name, smiles, atoms in rows:
        if any(name == block.name for block in blocks):
            raise BlocksError(f"block {name!r} is there twice: names must differ")
        if smiles not in fragments:
            fragments[smiles] = _fragment(name, smiles)
        _check_atoms(name, smiles, atoms)
        index = list(fragments).index(smiles)
        blocks.append(Block(name, index, atoms[0], tuple(sorted(atoms[1:]))))
    return Blocks(tuple(fragments.values()), tuple(blocks))


def _fragment(name: str, smiles: str) -> Fragment:
    mol = rdkit_chem().MolFromSmiles(smiles)
    if mol is None:
        raise BlocksError(f"block {name!r}: RDKit cannot read the SMILES {smiles!r}")
    n_atoms = mol.GetNumAtoms()
    symmetries = _symmetries(mol)
    return Fragment(
        smiles,
        n_atoms,
        symmetries,
        tuple(min(g[i] for g in symmetries) for i in range(n_atoms)),
        tuple(tuple(min(n_atoms * g[i] + g[j] for g in symmetries) for j in range(n_atoms)) for i in range(n_atoms)),
    )


def _symmetries(mol: Any) -> tuple[Permutation, ...]:
    # A substructure match ignores hydrogens, and would exchange n and [nH].
    invariant = [(a.GetAtomicNum(), a.GetFormalCharge(), a.GetTotalNumHs(), a.GetIsAromatic()) for a in mol.GetAtoms()]
    matches = mol.GetSubstructMatches(mol, uniquify=False, maxMatches=10_000)
    return tuple(m for m in matches if all(invariant[i] == invariant[j] for i, j in enumerate(m)))


def _check_atoms(name: str, smiles: str, atoms: Sequence[int]) -> None:
    chem = rdkit_chem()
    mol = chem.RWMol(chem.MolFromSmiles(smiles))
    n_atoms = mol.GetNumAtoms()
    if not atoms or any(type(atom) is not int or not 0 <= atom < n_atoms for atom in atoms):
        raise BlocksError(
            f"block {name!r}: block_r is {list(atoms)}; needed one atom or more, each from 0 to {n_atoms - 1}, the "
            f"atoms of {smiles!r}"
        )
    for atom in atoms:
        join(mol, atom, mol.AddAtom(chem.Atom("C")))
    try:
        chem.SanitizeMol(mol)
    except chem.MolSanitizeException as error:
        raise BlocksError(
            f"block {name!r}: {smiles!r} cannot take a bond at each of {list(atoms)} ({error}): name an atom in "
            "block_r no more often than it has hydrogens"
        ) from error


def join(mol: Any, first: int, second: int) -> None:
    """Add a single bond to an RDKit RWMol; atoms whose hydrogens are written out lose one."""
    for atom in (mol.GetAtomWithIdx(first), mol.GetAtomWithIdx(second)):
        if atom.GetNumExplicitHs():
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
    mol.AddBond(first, second, rdkit_chem().BondType.SINGLE)
