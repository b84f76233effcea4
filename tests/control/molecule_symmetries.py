"""Isomorphism of partial molecules by RDKit's canonical SMILES: atoms carry what a symmetry has to keep."""

from __future__ import annotations

from collections import Counter

from rdkit import Chem

from posttrain.control.molecules.blocks import Blocks
from posttrain.control.molecules.molecule import Molecule, Site

LINK = 54  # xenon between joined atoms, so that no symmetry takes a bond within a fragment for one between two


def marked_smiles(blocks: Blocks, molecule: Molecule, marked: Site | None) -> str:
    """Equal exactly for isomorphic molecules with alike sites marked. Isotope: fragment, stems of the atom, mark."""
    mol = Chem.RWMol()
    first: list[int] = []
    for node, fragment in enumerate(molecule.fragments):
        first.append(mol.GetNumAtoms())
        mol.InsertMol(Chem.MolFromSmiles(blocks.fragments[fragment].smiles))
        stems = Counter(molecule.stems[node])
        for atom in range(blocks.fragments[fragment].n_atoms):
            isotope = 100 * (fragment + 1) + 10 * stems[atom] + (marked == (node, atom))
            mol.GetAtomWithIdx(first[node] + atom).SetIsotope(isotope)
    for bond in molecule.bonds:
        link = mol.AddAtom(Chem.Atom(LINK))
        mol.AddBond(first[bond.node] + bond.atom, link, Chem.BondType.SINGLE)
        mol.AddBond(link, first[bond.other] + bond.other_atom, Chem.BondType.SINGLE)
    mol.UpdatePropertyCache(strict=False)
    return Chem.MolToSmiles(mol)
