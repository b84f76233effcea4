"""RDKit, which is optional, or the sentence that says how to get it."""

from __future__ import annotations

from typing import Any


def rdkit_chem() -> Any:
    """The module rdkit.Chem. Raises ImportError with the command that installs it."""
    try:
        from rdkit import Chem
    except ImportError as error:
        raise ImportError("molecules need RDKit: pip install 'posttrain[molecules]'") from error
    return Chem
