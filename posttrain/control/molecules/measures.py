"""How good and how different the molecules of a set are. Scores are the reward's, before floor and exponent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.control.molecules.chemistry import fingerprints, scaffold


def top_mean(scores: Sequence[float], k: int) -> float | None:
    """Mean of the k highest; None where there are fewer."""
    return sum(sorted(scores, reverse=True)[:k]) / k if len(scores) >= k else None


def mean_tanimoto(smiles: Sequence[str]) -> float | None:
    """Mean Tanimoto similarity over all pairs, lower is more diverse; None for fewer than two."""
    prints = fingerprints(smiles)
    n_pairs = len(prints) * (len(prints) - 1) // 2
    return sum(sum(_similarities(prints[i], prints[:i])) for i in range(1, len(prints))) / n_pairs if n_pairs else None


def count_scaffolds(scores: Mapping[str, float], *, above: float) -> int:
    """Different Bemis-Murcko scaffolds among the SMILES that score above a threshold."""
    return len({scaffold(smiles) for smiles, score in scores.items() if score > above})


def count_modes(scores: Mapping[str, float], *, above: float, similarity: float = 0.7) -> int:
    """Size of the set that takes SMILES above the threshold, best first, if unlike all taken before.

    Unlike: a Tanimoto similarity below `similarity`, 0.7 in arXiv 2106.04399.
    """
    good = sorted((smiles for smiles, score in scores.items() if score > above), key=lambda s: (-scores[s], s))
    modes: list[Any] = []
    for candidate in fingerprints(good):
        if all(alike < similarity for alike in _similarities(candidate, modes)):
            modes.append(candidate)
    return len(modes)


def _similarities(one: Any, others: Sequence[Any]) -> list[float]:
    from rdkit.DataStructs import BulkTanimotoSimilarity

    return BulkTanimotoSimilarity(one, list(others))
