"""Calibration measures against hand-computed numbers and SciPy's rank statistics."""

import numpy as np
import pytest
from scipy import stats

from posttrain.evaluation.calibration import auc, brier_score, expected_calibration_error, reliability_bins
from posttrain.evaluation.statistics import wilson_interval


def test_reliability_bins_hold_the_hand_counted_states():
    # Halves: [0, 0.5) holds 0.1 and 0.3 (one correct), [0.5, 1] holds 0.5, 0.9 and 1.0 (two correct).
    low, high = reliability_bins([0.1, 0.3, 0.5, 0.9, 1.0], [0, 1, 0, 1, 1], n_bins=2)
    assert (low.low, low.high, low.n, low.success) == (0.0, 0.5, 2, wilson_interval(1, 2))
    assert low.mean_value == pytest.approx(0.2)
    assert (high.n, high.success) == (3, wilson_interval(2, 3))
    assert high.mean_value == pytest.approx(0.8)
    # 2/5 * |0.2 - 1/2| + 3/5 * |0.8 - 2/3| = 0.12 + 0.08
    assert expected_calibration_error([low, high]) == pytest.approx(0.20)


def test_reliability_bins_put_values_beyond_the_unit_interval_at_the_ends_without_clipping_their_mean():
    bins = reliability_bins([-0.4, 1.5], [0, 1], n_bins=10)
    assert [(b.low, b.n, b.mean_value) for b in bins] == [(0.0, 1, -0.4), (0.9, 1, 1.5)]


def test_auc_equals_the_mann_whitney_statistic_with_many_ties():
    rng = np.random.default_rng(0)
    value, is_correct = rng.integers(0, 6, 300) / 5, rng.random(300) < 0.4
    expected = stats.mannwhitneyu(value[is_correct], value[~is_correct]).statistic
    assert auc(value, is_correct) == pytest.approx(expected / (is_correct.sum() * (~is_correct).sum()))


def test_auc_is_one_half_when_the_value_says_nothing():
    assert auc([0.5] * 4, [0, 1, 1, 0]) == 0.5


def test_auc_refuses_outcomes_of_one_kind():
    with pytest.raises(ValueError, match="there are 2 and 0"):
        auc([0.1, 0.2], [1, 1])


def test_brier_score_is_the_mean_squared_distance_to_the_outcome():
    # (0.8 - 1)^2 = 0.04, (0.4 - 0)^2 = 0.16, (1.2 - 1)^2 = 0.04: mean 0.08
    assert brier_score([0.8, 0.4, 1.2], [1, 0, 1]) == pytest.approx(0.08)


def test_calibration_refuses_values_that_are_not_finite():
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        brier_score([0.1, np.nan], [0, 1])
