"""The account of the molecules that a method has had evaluated, its only currency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.control.molecules.blocks import Blocks
from posttrain.control.molecules.chemistry import assemble, smiles_of
from posttrain.control.molecules.measures import count_modes, count_scaffolds, mean_tanimoto, top_mean
from posttrain.control.molecules.molecule import Molecule
from posttrain.control.molecules.rewards import Reward

TOPS = (10, 100, 1000)
N_COMPARED = 100  # of the best, whose pairwise similarity is measured


class Evaluations:
    """Scores molecules, and keeps the best score of every different SMILES."""

    def __init__(self, blocks: Blocks, reward: Reward, *, threshold: float) -> None:
        self.blocks, self.reward, self.threshold = blocks, reward, threshold
        self.n_evaluated = 0
        self.best: dict[str, float] = {}

    def log_rewards(self, molecules: Sequence[Molecule]) -> list[float]:
        """log R of each; every one counts as evaluated, repeated or not."""
        mols = [assemble(self.blocks, molecule) for molecule in molecules]
        scores = self.reward.score(mols)
        for (mol, _), score in zip(mols, scores, strict=True):
            smiles = smiles_of(mol)
            self.best[smiles] = max(score, self.best.get(smiles, score))
        self.n_evaluated += len(molecules)
        return [self.reward.log_reward(score) for score in scores]

    def ranked(self) -> list[tuple[str, float]]:
        """(SMILES, score), the best first."""
        return sorted(self.best.items(), key=lambda entry: (-entry[1], entry[0]))

    def measure(self) -> dict[str, float]:
        """Numbers of all molecules so far; those that need more molecules than there are, are left out."""
        scores = list(self.best.values())
        compared = [smiles for smiles, _ in self.ranked()[:N_COMPARED]]
        measured = {
            "n_evaluated": float(self.n_evaluated),
            "n_distinct": float(len(scores)),
            **{f"top_{k}": top_mean(scores, k) for k in TOPS},
            f"tanimoto_top_{N_COMPARED}": mean_tanimoto(compared) if len(compared) == N_COMPARED else None,
            "n_scaffolds": float(count_scaffolds(self.best, above=self.threshold)),
            "n_modes": float(count_modes(self.best, above=self.threshold)),
        }
        return {name: value for name, value in measured.items() if value is not None}

    def state(self) -> dict[str, Any]:
        return {"n_evaluated": self.n_evaluated, "best": dict(self.best)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.n_evaluated, self.best = state["n_evaluated"], dict(state["best"])
