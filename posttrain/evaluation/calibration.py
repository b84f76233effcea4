"""Does a value predict success?  Reliability bins, rank quality (AUC) and squared error of V against the outcome.

V need not lie in [0, 1]: OREO's V is the expected reward minus beta times the later log-ratios, and nothing clips it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posttrain.evaluation.statistics import CONFIDENCE, Interval, wilson_interval

N_AUC_RESAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The states whose value falls into [low, high)."""

    low: float
    high: float
    n: int
    mean_value: float
    success: Interval  # share of these states whose solution ended correct, Wilson


def reliability_bins(value: ArrayLike, is_correct: ArrayLike, *, n_bins: int) -> tuple[ReliabilityBin, ...]:
    """Equal-width bins over [0, 1], empty ones left out.  Values outside [0, 1] fall into the first or last bin.

    The Wilson interval of a bin takes its states as independent; pass one state per solution where that must hold.
    """
    v, correct = _pair(value, is_correct)
    index = np.clip(np.floor(v * n_bins), 0, n_bins - 1).astype(np.int64)
    return tuple(
        ReliabilityBin(
            low=b / n_bins,
            high=(b + 1) / n_bins,
            n=int((index == b).sum()),
            mean_value=float(v[index == b].mean()),
            success=wilson_interval(int(correct[index == b].sum()), int((index == b).sum())),
        )
        for b in np.unique(index).tolist()
    )


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Σ_b n_b/n · |mean value − success rate|, over the bins given."""
    n = sum(b.n for b in bins)
    return sum(b.n / n * abs(b.mean_value - b.success.estimate) for b in bins)


def brier_score(value: ArrayLike, is_correct: ArrayLike) -> float:
    """Mean of (V − outcome)², with V as it is, not clipped; a constant guess of the base rate p scores p(1 − p)."""
    v, correct = _pair(value, is_correct)
    return float(np.square(v - correct).mean())


def auc(value: ArrayLike, is_correct: ArrayLike) -> float:
    """Chance that a correct one has a higher value than a wrong one, ties counted half (Mann-Whitney U / n₁n₀)."""
    v, correct = _pair(value, is_correct)
    n_correct, n_wrong = int(correct.sum()), int((~correct).sum())
    if n_correct == 0 or n_wrong == 0:
        raise ValueError(f"AUC compares correct with wrong answers, but there are {n_correct} and {n_wrong}")
    _, group, size = np.unique(v, return_inverse=True, return_counts=True)
    # The mean rank of a group of ties: all before it, plus half of (its size + 1).
    mean_rank = np.cumsum(size) - (size - 1) / 2
    u = mean_rank[group][correct].sum() - n_correct * (n_correct + 1) / 2
    return float(u / (n_correct * n_wrong))


def auc_interval(value: ArrayLike, is_correct: ArrayLike, *, rng: np.random.Generator) -> Interval:
    """AUC with its percentile bootstrap interval; correct and wrong ones are resampled apart, so both always occur."""
    v, correct = _pair(value, is_correct)
    estimate = auc(v, correct)
    right, wrong = v[correct], v[~correct]
    outcome = np.repeat([True, False], [len(right), len(wrong)])
    draws = [
        auc(np.concatenate([rng.choice(right, len(right)), rng.choice(wrong, len(wrong))]), outcome)
        for _ in range(N_AUC_RESAMPLES)
    ]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(estimate, float(low), float(high))


def _pair(value: ArrayLike, is_correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    v, correct = np.asarray(value, np.float64), np.asarray(is_correct, np.bool_)
    if v.ndim != 1 or v.shape != correct.shape or len(v) == 0:
        raise ValueError(f"values are {v.shape}, outcomes {correct.shape}: expected two equally long lists, not empty")
    if not np.isfinite(v).all():
        raise ValueError(
            f"{int((~np.isfinite(v)).sum())} of {len(v)} values are not finite: did the value head diverge?"
        )
    return v, correct
