"""Intervals and exact expectations against SciPy, enumeration and numbers from the literature."""

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats

from posttrain.evaluation.statistics import (
    best_of_n_accuracy,
    bootstrap_interval,
    mcnemar_p,
    pass_at_k,
    seed_interval,
    student_t_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(("n_correct", "n"), [(0, 1), (0, 20), (7, 20), (20, 20), (612, 1000)])
def test_wilson_interval_equals_scipys(n_correct, n):
    expected = stats.binomtest(n_correct, n).proportion_ci(0.95, method="wilson")
    interval = wilson_interval(n_correct, n)
    assert interval.estimate == n_correct / n
    assert interval.low == pytest.approx(expected.low, abs=1e-12)
    assert interval.high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_interval_keeps_its_exact_end_at_none_and_all_correct():
    assert wilson_interval(0, 10).low == 0.0
    assert wilson_interval(10, 10).high == 1.0


@pytest.mark.parametrize(("n_correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_what_is_no_proportion(n_correct, n):
    with pytest.raises(ValueError, match="is no proportion"):
        wilson_interval(n_correct, n)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 101])
def test_student_t_quantile_equals_scipys(degrees):
    assert student_t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_seed_interval_is_the_hand_computed_one_for_three_seeds():
    # mean 0.04, standard deviation 0.02, t(2) = 4.302653: half-width 4.302653 * 0.02 / sqrt(3) = 0.0496828
    interval = seed_interval([0.02, 0.04, 0.06])
    assert interval.estimate == pytest.approx(0.04)
    assert interval.low == pytest.approx(0.04 - 0.0496828, abs=1e-7)
    assert interval.high == pytest.approx(0.04 + 0.0496828, abs=1e-7)


def test_seed_interval_refuses_a_single_seed():
    with pytest.raises(ValueError, match="at least 2 seeds"):
        seed_interval([0.5])


def test_bootstrap_interval_matches_scipys_resampling_of_the_same_differences():
    differences = np.random.default_rng(0).choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=400)
    ours = bootstrap_interval(differences, np.ones(400), rng=np.random.default_rng(1))
    theirs = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=2
    ).confidence_interval
    # Both quantiles carry Monte Carlo noise of about 0.001 (one answer of 400 is 0.0025).
    assert ours.estimate == pytest.approx(differences.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.006)
    assert ours.high == pytest.approx(theirs.high, abs=0.006)


def test_bootstrap_interval_widens_by_root_two_when_two_seeds_agree_on_every_problem():
    # 200 answers that are 100 problems answered alike twice hold the information of 100 answers.
    solved = np.tile([0, 1], 50)
    clustered = bootstrap_interval(2 * solved, np.full(100, 2), rng=np.random.default_rng(0))
    independent = bootstrap_interval(np.repeat(solved, 2), np.ones(200), rng=np.random.default_rng(0))
    ratio = (clustered.high - clustered.low) / (independent.high - independent.low)
    assert ratio == pytest.approx(math.sqrt(2), rel=0.1)  # ends lie on a grid of 1/200 in a width of 0.14


def test_bootstrap_interval_is_the_same_for_the_same_generator():
    x = np.arange(50) % 3
    assert bootstrap_interval(x, np.ones(50), rng=np.random.default_rng(7)) == bootstrap_interval(
        x, np.ones(50), rng=np.random.default_rng(7)
    )


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    n_covered = 0
    for _ in range(200):
        differences = rng.choice([-1, 0, 1], p=[0.15, 0.6, 0.25], size=300)
        interval = bootstrap_interval(differences, np.ones(300), rng=rng)
        n_covered += interval.low <= 0.10 <= interval.high
    # 200 draws of a 95 % event: 190 expected, standard deviation 3.1; four of them below is 178.
    assert n_covered >= 178


@pytest.mark.parametrize(("n_only_a", "n_only_b"), [(0, 0), (3, 3), (1, 9), (25, 12), (0, 6), (400, 350)])
def test_mcnemar_p_equals_the_exact_binomial_test(n_only_a, n_only_b):
    n = n_only_a + n_only_b
    expected = stats.binomtest(n_only_a, n, 0.5).pvalue if n else 1.0
    assert mcnemar_p(n_only_a, n_only_b) == pytest.approx(expected, rel=1e-10)


def test_mcnemar_p_is_two_times_one_half_to_the_sixth_when_all_six_go_one_way():
    assert mcnemar_p(6, 0) == 2 / 64


@pytest.mark.parametrize(("n_correct", "k"), [(0, 3), (2, 1), (2, 3), (5, 3), (7, 7)])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_correct_sample(n_correct, k):
    samples = [1] * n_correct + [0] * (7 - n_correct)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(7, n_correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_refuses_more_draws_than_samples():
    with pytest.raises(ValueError, match="pass@5 of 4 samples"):
        pass_at_k(4, 2, 5)


def brute_force_best_of_n(value, is_correct, n):
    """Every subset, and every order of its ties: the mean correctness of its highest-valued members."""
    accuracies = []
    for subset in itertools.combinations(range(len(value)), n):
        best = max(value[i] for i in subset)
        tied = [is_correct[i] for i in subset if value[i] == best]
        accuracies.append(sum(tied) / len(tied))
    return sum(accuracies) / len(accuracies)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_best_of_n_accuracy_equals_the_mean_over_all_subsets_with_ties(n):
    rng = random.Random(n)
    for _ in range(20):
        value = [rng.choice([0.1, 0.3, 0.3, 0.8]) for _ in range(8)]
        is_correct = [rng.random() < 0.5 for _ in range(8)]
        expected = brute_force_best_of_n(value, is_correct, n)
        assert best_of_n_accuracy(value, is_correct, n) == pytest.approx(expected, abs=1e-12)


def test_best_of_n_accuracy_with_the_outcome_as_value_is_pass_at_k():
    outcome = [1, 0, 0, 1, 0, 0, 0, 0]
    for n in (1, 2, 4, 8):
        assert best_of_n_accuracy(outcome, outcome, n) == pytest.approx(pass_at_k(8, 2, n))


def test_best_of_n_accuracy_refuses_nan_values_and_sizes_beyond_the_samples():
    with pytest.raises(ValueError, match="NaN"):
        best_of_n_accuracy([0.1, math.nan], [1, 0], 1)
    with pytest.raises(ValueError, match="best of 3"):
        best_of_n_accuracy([0.1, 0.2], [1, 0], 3)
