"""A few common groups as blocks, for studies and tests that have no file of blocks at hand."""

from __future__ import annotations

from posttrain.control.molecules.blocks import Blocks, make_blocks

_ROWS = (
    ("benzene", "c1ccccc1", (0, 1, 2, 3, 4, 5)),
    ("pyridine", "c1ccncc1", (0, 1, 2, 4, 5)),
    ("piperidine", "C1CCNCC1", (3, 0)),
    ("piperidine-4", "C1CCNCC1", (0, 3)),
    ("cyclohexane", "C1CCCCC1", (0, 1, 2, 3, 4, 5)),
    ("amide", "NC=O", (0, 1)),
    ("amide-C", "NC=O", (1, 0)),
    ("sulfonyl", "O=[SH2]=O", (1, 1)),
    ("methyl", "C", (0,)),
    ("ethylene", "CC", (0, 1)),
    ("oxygen", "O", (0, 0)),
    ("amine", "N", (0, 0, 0)),
    ("fluorine", "F", (0,)),
    ("chlorine", "Cl", (0,)),
    ("cyano", "C#N", (0,)),
    ("trifluoromethyl", "FC(F)F", (1,)),
)


def small_blocks() -> Blocks:
    """16 blocks of 14 fragments, rings, linkers and end groups."""
    return make_blocks(_ROWS)
