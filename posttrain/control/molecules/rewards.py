"""Rewards of molecules by name, each with its score, floor and scale written down once.

    log R = exponent · log(max(score, floor) / scale)

The published experiments use the floor 0.1 in their code and 0.01 in their table; theirs in code is the one taken.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from posttrain.control.molecules.seh_proxy import SehProxy, atom_graphs

DATA_FOLDER_VARIABLE = "POSTTRAIN_DATA"
SIBLING_DATA_FOLDER = Path("../shared/data")
BLOCKS_FILE, PROXY_FILE = "blocks_PDB_105.json", "proxy_params.npz"

Scorer = Callable[[Sequence[tuple[Any, Sequence[int]]]], list[float]]  # (RDKit molecule, its stem atoms) -> score


class RewardName(StrEnum):
    SEH = "seh"
    QED = "qed"


@dataclass(frozen=True, slots=True)
class Reward:
    """A score, and the positive reward that is made of it."""

    score: Scorer
    floor: float  # in units of the score; scores below it are rewarded alike
    scale: float  # the score whose reward is 1
    exponent: float  # higher prefers the best more

    def log_reward(self, score: float) -> float:
        return self.exponent * math.log(max(score, self.floor) / self.scale)


def make_reward(name: RewardName, folder: Path | None, *, exponent: float) -> Reward:
    """seh: the published proxy, 8 for −13 kcal/mol; qed: RDKit's drug-likeness, 0 to 1, which needs no data."""
    if not exponent > 0:
        raise ValueError(f"exponent is {exponent}, needed above 0: a reward of 0 or less has no logarithm")
    match name:
        case RewardName.SEH:
            return Reward(seh_scorer(data_file(PROXY_FILE, folder)), floor=0.1, scale=8.0, exponent=exponent)
        case RewardName.QED:
            return Reward(qed_scores, floor=0.01, scale=1.0, exponent=exponent)


def seh_scorer(weights: Path) -> Scorer:
    """Scores by the sEH proxy, all molecules of a call at once."""
    proxy = SehProxy.read(weights)

    def score(mols: Sequence[tuple[Any, Sequence[int]]]) -> list[float]:
        with torch.no_grad():
            return proxy(atom_graphs(mols)).tolist()

    return score


def qed_scores(mols: Sequence[tuple[Any, Sequence[int]]]) -> list[float]:
    from rdkit.Chem.QED import qed

    return [qed(mol) for mol, _ in mols]


def data_file(name: str, folder: Path | None) -> Path:
    """The file in `folder`; None looks in `molecules` below POSTTRAIN_DATA, then below ../shared/data.

    Raises FileNotFoundError saying where the file comes from.
    """
    named = os.environ.get(DATA_FOLDER_VARIABLE)
    below = [*([Path(named)] if named else []), SIBLING_DATA_FOLDER]
    candidates = [folder] if folder is not None else [place / "molecules" for place in below]
    for candidate in candidates:
        if (candidate / name).is_file():
            return candidate / name
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(
        f"no {name} in {looked}: point POSTTRAIN_DATA at a folder that holds molecules/ with the files of "
        "GFNOrg/gflownet (mols/data), or name that folder; recipes/gflownet says how to make them"
    )
