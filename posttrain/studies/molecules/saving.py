"""Molecules as nested lists, for checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.control.molecules.molecule import Bond, Molecule


def plain_molecule(molecule: Molecule) -> list[Any]:
    return [list(molecule.fragments), [list(stems) for stems in molecule.stems], [list(b) for b in molecule.bonds]]


def molecule_from(plain: Sequence[Any]) -> Molecule:
    fragments, stems, bonds = plain
    return Molecule(tuple(fragments), tuple(tuple(atoms) for atoms in stems), tuple(Bond(*bond) for bond in bonds))
