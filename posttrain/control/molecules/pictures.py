"""Molecules drawn side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.control.molecules.rdkit_import import rdkit_chem


def draw_grid(path: Path, smiles: Sequence[str], legends: Sequence[str], *, n_columns: int, cell_px: int) -> Path:
    """Write a PNG with a molecule and its legend in each cell, row by row; the same bytes every time."""
    from rdkit.Chem.Draw.rdMolDraw2D import MolDraw2DCairo, PrepareMolForDrawing

    if not smiles:
        raise ValueError(f"{path.name}: no molecules to draw")
    n_rows = -(-len(smiles) // n_columns)
    canvas = MolDraw2DCairo(n_columns * cell_px, n_rows * cell_px, cell_px, cell_px)
    options = canvas.drawOptions()
    options.includeMetadata = False
    options.legendFontSize = 20
    options.padding = 0.06
    options.drawMolsSameScale = False
    chem = rdkit_chem()
    mols = [PrepareMolForDrawing(chem.MolFromSmiles(one)) for one in smiles]
    canvas.DrawMolecules(mols, legends=list(legends))
    canvas.FinishDrawing()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(canvas.GetDrawingText())
    return path
