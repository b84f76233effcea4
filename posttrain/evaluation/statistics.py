"""Intervals, paired tests and exact expectations for accuracies; pure functions of numbers, no files, no models.

Every interval is two-sided at CONFIDENCE.  `is_correct` arrays hold 0/1 or booleans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
N_RESAMPLES = 10_000
_MAX_DRAWS = 4_000_000  # numbers held at once while resampling

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its 95 % interval, all in the unit of the estimate."""

    estimate: float
    low: float
    high: float


def wilson_interval(n_correct: int, n: int) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927); the estimate is n_correct / n.

    With z the normal quantile, p = n_correct / n:  (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n).
    It stays inside [0, 1] and keeps a width at 0 and n correct, where the normal interval collapses.
    """
    if not 0 <= n_correct <= n or n == 0:
        raise ValueError(f"{n_correct} correct of {n} is no proportion: were there any answers?")
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    p = n_correct / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # With none or all correct one end is 0 or 1 on paper, and a rounding away from it in floats.
    low = 0.0 if n_correct == 0 else (centre - half) / scale
    high = 1.0 if n_correct == n else (centre + half) / scale
    return Interval(p, low, high)


def student_t_quantile(degrees: int) -> float:
    """The t with P(|T| <= t) = CONFIDENCE for an integer number of degrees of freedom, by bisection."""
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom: an interval over seeds needs at least 2 seeds")
    low, high = 0.0, 1.0
    while _student_t_central(high, degrees) < CONFIDENCE:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_t_central(middle, degrees) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _student_t_central(t: float, degrees: int) -> float:
    """P(|T| <= t), the finite sums of Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    first = 3 if is_odd else 2
    term = cosine if is_odd else 1.0
    series = term if degrees > 1 else 0.0
    for j in range(first, degrees - 1, 2):
        term *= (j - 1) / j * cosine * cosine
        series += term
    return 2 / math.pi * (angle + sine * series) if is_odd else sine * series


def seed_interval(by_seed: ArrayLike) -> Interval:
    """Mean over seeds with Student's t interval, n_seeds − 1 degrees of freedom: what another seed may give.

    by_seed: [S] one number per seed, S >= 2.  It treats the seeds as draws from a normal distribution.
    """
    x = np.asarray(by_seed, dtype=np.float64)
    half = student_t_quantile(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(total: ArrayLike, n: ArrayLike, *, rng: np.random.Generator) -> Interval:
    """Percentile bootstrap of Σ total / Σ n over clusters, here problems.

    total: [C] sum of the cluster's numbers; n: [C] how many it has.  A problem answered under several seeds is one
    cluster, because its answers share its difficulty.  With n = 1 everywhere this is the bootstrap of a mean.
    """
    pairs = np.stack([np.asarray(total, np.float64), np.asarray(n, np.float64)], axis=1)
    if len(pairs) == 0 or (pairs[:, 1] <= 0).any():
        raise ValueError(f"{len(pairs)} clusters, some may be empty: every problem needs at least one answer")
    # Drawing C clusters with replacement is drawing how often each distinct (total, n) comes up.
    distinct, count = np.unique(pairs, axis=0, return_counts=True)
    draws_per_block = max(1, _MAX_DRAWS // len(distinct))
    means: list[Floats] = []
    for start in range(0, N_RESAMPLES, draws_per_block):
        size = min(draws_per_block, N_RESAMPLES - start)
        sums = rng.multinomial(len(pairs), count / len(pairs), size=size) @ distinct
        means.append(sums[:, 0] / sums[:, 1])
    low, high = np.quantile(np.concatenate(means), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(pairs[:, 0].sum() / pairs[:, 1].sum()), float(low), float(high))


def mcnemar_p(n_only_a: int, n_only_b: int) -> float:
    """Exact two-sided McNemar test: were problems that only one method solved split by a fair coin?

    p = min(1, 2·P(X <= min(n_only_a, n_only_b))),  X ~ Binomial(n_only_a + n_only_b, 1/2).
    """
    n = n_only_a + n_only_b
    tail = sum(math.comb(n, k) for k in range(min(n_only_a, n_only_b) + 1))
    return min(1.0, float(2 * tail / 2**n))


def pass_at_k(n_samples: int, n_correct: int, k: int) -> float:
    """Unbiased chance that k of the n samples, drawn without replacement, hold a correct one: 1 − C(n−c, k)/C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), Eq. 1.
    """
    if not 0 <= n_correct <= n_samples or not 1 <= k <= n_samples:
        raise ValueError(
            f"pass@{k} of {n_samples} samples with {n_correct} correct: needs 1 <= k <= n and 0 <= c <= n"
        )
    return 1 - math.comb(n_samples - n_correct, k) / math.comb(n_samples, k)


def best_of_n_accuracy(value: ArrayLike, is_correct: ArrayLike, n: int) -> float:
    """Chance that the highest-valued of n samples is correct, exact over all C(N, n) subsets of the N samples at hand.

    value, is_correct: [N].  Sorted by falling value, the sample at rank i (from 0) is the best of a random subset with
    probability C(N−1−i, n−1) / C(N, n): it is drawn, and the other n − 1 come from the N−1−i below it.  Equal values
    are broken at random, so each of them counts with its group's mean.
    """
    v, correct = np.asarray(value, np.float64), np.asarray(is_correct, np.float64)
    n_samples = len(v)
    if v.shape != correct.shape or not 1 <= n <= n_samples:
        raise ValueError(
            f"best of {n} from {v.shape} values and {correct.shape} grades: needs equal lengths N >= n >= 1"
        )
    if np.isnan(v).any():
        raise ValueError("a value is NaN: samples without a value cannot be ranked")
    _, group = np.unique(-v, return_inverse=True)
    group_mean = np.bincount(group, weights=correct) / np.bincount(group)
    falling = group_mean[np.sort(group)]
    weight = [math.comb(n_samples - 1 - i, n - 1) / math.comb(n_samples, n) for i in range(n_samples)]
    return float(falling @ np.asarray(weight))
