"""Dual ascent on a KL coefficient, against closed forms."""

import math

import pytest
import torch

from posttrain.training.kl_target import KlTarget

REWARD = torch.tensor([1.0, 0.3, -0.5], dtype=torch.float64)
LOG_REF = torch.tensor([0.1, -0.4, 0.6], dtype=torch.float64).log_softmax(-1)


def kl_at(coefficient: float) -> float:
    """KL(π‖π_ref) of the best policy for E[R] − c KL, which is π ∝ π_ref e^{R/c}."""
    logp = (LOG_REF + REWARD / coefficient).log_softmax(-1)
    return (logp.exp() * (logp - LOG_REF)).sum().item()


def test_coefficient_grows_exponentially_with_the_excess_of_the_kl():
    # Three updates at KL 0.5 with target 0.2 and rate 2: 0.1 · e^{3 · 2 · 0.3}; then one at 0.1: · e^{−0.2}.
    kl_target = KlTarget(target=0.2, coefficient=0.1, rate=2.0)
    for _ in range(3):
        kl_target.update(0.5)
    assert kl_target.coefficient == pytest.approx(0.1 * math.exp(1.8), rel=1e-12)
    kl_target.update(0.1)
    assert kl_target.coefficient == pytest.approx(0.1 * math.exp(1.6), rel=1e-12)


def test_coefficient_stays_where_the_kl_meets_the_target():
    kl_target = KlTarget(target=0.2, coefficient=0.1, rate=2.0)
    kl_target.update(0.2)
    assert kl_target.coefficient == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize("start", [0.05, 20.0])
def test_coefficient_settles_where_the_best_policy_has_the_target_kl(start):
    # kl_at falls in c, so the c with kl_at(c) = 0.1 is found by bisection, and dual ascent must end there.
    low, high = 0.01, 100.0
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kl_at(middle) > 0.1 else (low, middle)
    kl_target = KlTarget(target=0.1, coefficient=start, rate=1.0)
    for _ in range(400):
        kl_target.update(kl_at(kl_target.coefficient))
    assert kl_target.coefficient == pytest.approx(low, rel=1e-9)


def test_restored_coefficient_is_bit_equal():
    kl_target = KlTarget(target=0.2, coefficient=0.1, rate=0.7)
    kl_target.update(0.33)
    other = KlTarget(target=0.2, coefficient=5.0, rate=0.7)
    other.restore(kl_target.state())
    assert other.coefficient == kl_target.coefficient


@pytest.mark.parametrize("kl", [float("nan"), float("inf")])
def test_kl_that_is_not_finite_is_refused(kl):
    with pytest.raises(ValueError, match=r"the measured KL is (nan|inf), needs a finite number"):
        KlTarget(target=0.2, coefficient=0.1, rate=2.0).update(kl)


def test_kl_that_would_make_the_coefficient_absurd_is_refused_and_leaves_it():
    # log c = log 0.1 + 2 (50 − 0.2) = 97.3, above log 1e30 = 69.1.
    kl_target = KlTarget(target=0.2, coefficient=0.1, rate=2.0)
    with pytest.raises(ValueError, match=r"KL of 50\.0 against a target of 0\.2 makes the coefficient e\^97: is"):
        kl_target.update(50.0)
    assert kl_target.coefficient == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize("name", ["target", "coefficient", "rate"])
@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_that_cannot_work_are_refused(name, number):
    with pytest.raises(ValueError, match=rf"{name} is .*, needs a finite number above 0"):
        KlTarget(**{"target": 0.2, "coefficient": 0.1, "rate": 2.0, name: number})
