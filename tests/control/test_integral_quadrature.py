"""Rules of quadrature against polynomials, each other and the theory of reproducing kernels. All in float64."""

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose

from posttrain.control.integral.bayesian_quadrature import (
    DIGITS,
    PriorMean,
    bayesian_quadrature,
    bayesian_quadrature_at,
)
from posttrain.control.integral.kernels import Matern, Wiener
from posttrain.control.integral.quadrature import (
    cubic_spline,
    cubic_spline_at,
    gauss_legendre,
    simpson,
    trapezoid,
    trapezoid_at,
)

MATERN = [Matern(p, lengthscale=0.7) for p in range(4)]
KERNELS = pytest.mark.parametrize("kernel", MATERN, ids=[f"p={kernel.p}" for kernel in MATERN])


def powers(rule, degree: int) -> float:
    return rule(rule.nodes**degree)


@pytest.mark.parametrize(
    ("rule", "degree"),
    [(trapezoid, 1), (simpson, 3), (cubic_spline, 3), (gauss_legendre, 9)],
    ids=["trapezoid", "simpson", "cubic_spline", "gauss_legendre"],
)
def test_rule_of_five_nodes_is_exact_on_polynomials_to_its_degree_and_no_further(rule, degree):
    # ∫_0^2 t^d = 2^(d+1) / (d+1)
    five = rule(5, 2.0)
    for d in range(degree + 1):
        assert_allclose(powers(five, d), 2.0 ** (d + 1) / (d + 1), rtol=1e-14)
    beyond = degree + 1
    assert abs(powers(five, beyond) - 2.0 ** (beyond + 1) / (beyond + 1)) > 1e-4


def test_weights_of_three_nodes_are_the_textbook_ones():
    # On [0, 2], h = 1: trapezoid (1, 2, 1)/2, Simpson (1, 4, 1)/3; not-a-knot through three points is their parabola.
    assert_allclose(trapezoid(3, 2.0).weights, [0.5, 1.0, 0.5], rtol=1e-15)
    assert_allclose(simpson(3, 2.0).weights, [1 / 3, 4 / 3, 1 / 3], rtol=1e-15)
    assert_allclose(cubic_spline(3, 2.0).weights, [1 / 3, 4 / 3, 1 / 3], rtol=1e-14)


def test_irregular_rules_are_exact_on_their_polynomials():
    # ∫_0^3 t = 4.5 for the broken line, ∫_0^3 t³ = 20.25 for the spline.
    nodes = np.array([0.0, 0.2, 1.1, 2.0, 3.0])
    assert_allclose(powers(trapezoid_at(nodes, 3.0), 1), 4.5, rtol=1e-14)
    assert_allclose(powers(cubic_spline_at(nodes, 3.0), 3), 20.25, rtol=1e-14)


def test_simpson_refuses_an_even_number_of_nodes_and_names_the_fix():
    with pytest.raises(ValueError, match=r"6 nodes have 5 of them: take 5 or 7 nodes, or the cubic spline"):
        simpson(6, 1.0)


@pytest.mark.parametrize("nodes", [[0.0, 0.5, 0.5, 1.0], [0.0, 1.2], [-0.1, 1.0], [0.5, 0.2]])
def test_nodes_that_repeat_or_leave_the_segment_are_refused(nodes):
    with pytest.raises(ValueError, match=r"must increase within \[0, 1.0\]: sort them"):
        trapezoid_at(np.array(nodes), 1.0)


@KERNELS
def test_closed_integrals_of_the_matern_kernel_agree_with_numerical_ones(kernel):
    # mpmath's adaptive quadrature, split at the kink of k, at 30 digits.
    with mpmath.workdps(30):
        t, length = mpmath.mpf("0.3"), mpmath.mpf("1.1")
        embedding = mpmath.quad(lambda s: kernel.covariance(s, t), [0, t, length])
        total = mpmath.quad(lambda s: kernel.embedding(s, length), [0, length])
        assert_allclose(float(kernel.embedding(t, length)), float(embedding), rtol=1e-15)
        assert_allclose(float(kernel.total(length)), float(total), rtol=1e-15)


def test_matern_kernels_are_the_known_ones():
    # Rasmussen and Williams, Eqs. 4.14 and 4.17, at s = √(2p+1) r / lengthscale: e^−s, (1+s)e^−s, (1+s+s²/3)e^−s;
    # p = 3 has (1 + s + 2s²/5 + s³/15)e^−s.
    polynomials = [
        lambda s: 1,
        lambda s: 1 + s,
        lambda s: 1 + s + s**2 / 3,
        lambda s: 1 + s + 2 * s**2 / 5 + s**3 / 15,
    ]
    for kernel, polynomial in zip(MATERN, polynomials, strict=True):
        s = np.sqrt(2 * kernel.p + 1) * 0.4 / 0.7
        assert_allclose(float(kernel.covariance(0.1, 0.5)), polynomial(s) * np.exp(-s), rtol=1e-14)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_wiener_process_from_a_known_start_gives_the_trapezoid_and_its_variance(n):
    # Between two known values of Brownian motion the integral of the bridge has variance h³/12; n − 1 bridges.
    rule = bayesian_quadrature(n, 2.0, kernel=Wiener(), mean=PriorMean.CONSTANT)
    assert_allclose(rule.weights, trapezoid(n, 2.0).weights, rtol=1e-15)
    assert_allclose(rule.variance, 2.0**3 / (12 * (n - 1) ** 2), rtol=1e-14)


def test_wiener_process_without_a_known_start_is_refused():
    with pytest.raises(ValueError, match="make 0 a node"):
        bayesian_quadrature_at(np.array([0.2, 1.0]), 1.0, kernel=Wiener(), mean=PriorMean.CONSTANT)
    with pytest.raises(ValueError, match="and the mean constant"):
        bayesian_quadrature(3, 1.0, kernel=Wiener(), mean=PriorMean.ZERO)


@KERNELS
def test_bayesian_weights_have_the_least_worst_case_error_of_all_weights(kernel):
    # e(c)² = ∫∫k − 2c'z + c'Kc = e(c*)² + (c − c*)'K(c − c*): above the variance by exactly this square.
    rule = bayesian_quadrature(5, 1.0, kernel=kernel, mean=PriorMean.ZERO)
    with mpmath.workdps(DIGITS):
        times = [mpmath.mpf(t) for t in rule.nodes]
        gram = mpmath.matrix([[kernel.covariance(s, t) for t in times] for s in times])
        embedding = mpmath.matrix([kernel.embedding(t, mpmath.mpf(1)) for t in times])
        best = mpmath.lu_solve(gram, embedding)
        for seed in range(5):
            shift = mpmath.matrix(np.random.default_rng(seed).normal(scale=0.05, size=5).tolist())
            other = best + shift
            error = kernel.total(1) - 2 * mpmath.fdot(other, embedding) + mpmath.fdot(other, gram * other)
            excess = mpmath.fdot(shift, gram * shift)
            assert excess > 0
            assert_allclose(float(error), rule.variance + float(excess), rtol=1e-12)


@KERNELS
def test_a_constant_mean_makes_the_rule_exact_on_constants_and_a_zero_mean_does_not(kernel):
    assert_allclose(bayesian_quadrature(4, 2.0, kernel=kernel, mean=PriorMean.CONSTANT).weights.sum(), 2.0, rtol=1e-14)
    assert abs(bayesian_quadrature(4, 2.0, kernel=kernel, mean=PriorMean.ZERO).weights.sum() - 2.0) > 0.01


def test_jitter_is_none_unless_asked_for():
    # Without jitter the posterior passes through the samples: k(·, t_1) is in the span, so its integral is exact.
    kernel = Matern(3, lengthscale=0.3)
    for jitter, is_exact in ((0.0, True), (1e-4, False)):
        rule = bayesian_quadrature(5, 1.0, kernel=kernel, mean=PriorMean.ZERO, jitter=jitter)
        samples = np.array([float(kernel.covariance(t, rule.nodes[1])) for t in rule.nodes])
        integral = float(kernel.embedding(mpmath.mpf(rule.nodes[1]), mpmath.mpf(1)))
        assert (abs(rule(samples) - integral) < 1e-14) == is_exact


@pytest.mark.parametrize("mean", PriorMean)
def test_amplitude_is_the_mean_square_of_whitened_samples(mean):
    # y'K⁻¹y / N for a zero mean; with an unknown one, contrasts are whitened: y'(K⁻¹ − K⁻¹11'K⁻¹/1'K⁻¹1)y / (N − 1).
    kernel = Matern(1, lengthscale=0.5)
    rule = bayesian_quadrature(4, 1.0, kernel=kernel, mean=mean)
    gram = np.array([[float(kernel.covariance(s, t)) for t in rule.nodes] for s in rule.nodes])
    samples, one = np.array([1.0, -0.5, 2.0, 0.3]), np.ones(4)
    precision = np.linalg.inv(gram)
    expected = samples @ precision @ samples / 4
    if mean is PriorMean.CONSTANT:
        pull = precision @ one
        expected = samples @ (precision - np.outer(pull, pull) / (one @ pull)) @ samples / 3
        assert_allclose(rule.amplitude(one), 0.0, atol=1e-25)
    assert_allclose(rule.amplitude(samples), expected, rtol=1e-11)
    assert_allclose(rule.standard_deviation(samples), np.sqrt(expected * rule.variance), rtol=1e-11)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": Matern(3, 0.3), "jitter": -1e-8}, "jitter is -1e-08: a variance, so 0"),
        ({"kernel": Matern(3, 0.3), "jitter": float("nan")}, "jitter is nan"),
    ],
)
def test_negative_jitter_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        bayesian_quadrature(3, 1.0, mean=PriorMean.ZERO, **settings)


def test_kernels_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"p is 4: Matérn kernels of smoothness"):
        Matern(4, 0.3)
    with pytest.raises(ValueError, match=r"lengthscale is 0\.0: give a time above 0"):
        Matern(3, 0.0)
