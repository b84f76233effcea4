"""What RDKit knows of an assembled molecule: the sanitised molecule, SMILES, fingerprints, scaffolds, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.control.molecules.blocks import Blocks, join
from posttrain.control.molecules.molecule import Molecule
from posttrain.control.molecules.rdkit_import import rdkit_chem

FINGERPRINT_RADIUS, FINGERPRINT_BITS = 2, 2048


def assemble(blocks: Blocks, molecule: Molecule) -> tuple[Any, tuple[int, ...]]:
    """The sanitised RDKit molecule, and the numbers of its atoms that have a stem, each once.

    Raises ValueError for the empty molecule, and where RDKit finds a valence that cannot be.
    """
    if len(molecule) == 0:
        raise ValueError("the empty molecule has no atoms: add a block first")
    chem = rdkit_chem()
    mol = chem.RWMol()
    first_atom: list[int] = []
    for fragment in molecule.fragments:
        first_atom.append(mol.GetNumAtoms())
        mol.InsertMol(_read(blocks.fragments[fragment].smiles))
    for bond in molecule.bonds:
        join(mol, first_atom[bond.node] + bond.atom, first_atom[bond.other] + bond.other_atom)
    try:
        chem.SanitizeMol(mol)
    except chem.MolSanitizeException as error:
        raise ValueError(f"{molecule}: {error}: does a site of its blocks take more bonds than it has?") from error
    stems = {first_atom[node] + atom for node, atoms in enumerate(molecule.stems) for atom in atoms}
    return mol.GetMol(), tuple(sorted(stems))


def smiles_of(mol: Any) -> str:
    """Canonical SMILES: one string per molecule, whatever blocks it was made of and whatever stems are left."""
    return rdkit_chem().MolToSmiles(mol)


def fingerprints(smiles: Sequence[str]) -> list[Any]:
    """Morgan fingerprints of radius 2, 2,048 bits (ECFP4)."""
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    generator = GetMorganGenerator(radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_BITS)
    return [generator.GetFingerprint(_read(one)) for one in smiles]


def scaffold(smiles: str) -> str:
    """SMILES of the Bemis-Murcko scaffold: the rings and what links them; "" where there is no ring."""
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    return MurckoScaffoldSmiles(mol=_read(smiles))


def _read(smiles: str) -> Any:
    mol = rdkit_chem().MolFromSmiles(smiles)
    if mol is None:
        raise ValueError(f"RDKit cannot read the SMILES {smiles!r}")
    return mol
