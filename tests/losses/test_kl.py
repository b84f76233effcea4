"""KL estimators and their gradients, summed over all tokens instead of sampled, and the exact terms.

π and π_ref are random over 7 tokens; both KLs are near 0.5 nats. Float64, sums of 7: 1e-12.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import kl_from_reference, kl_k1, kl_k2, kl_k3, kl_to_reference, oreo_token
from tests import reference
from tests.tree_mdp import build_tree, multi_turn_values

EXACT = {"rtol": 0, "atol": 1e-12}


def table(seed: int) -> Tensor:
    return torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOGITS, LOG_REF = table(0), table(1).log_softmax(-1)
LOG_PI = LOGITS.log_softmax(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.tensor(reference.exact_kl(log_p.numpy(), log_q.numpy()))


def kl_gradient(direction: str) -> Tensor:
    """In the logits of π: π (log π/π_ref − KL) for KL(π‖π_ref), π − π_ref for KL(π_ref‖π)."""
    if direction == "forward":
        return LOG_PI.exp() - LOG_REF.exp()
    return torch.from_numpy(reference.kl_logit_grad(LOG_PI.numpy(), LOG_REF.numpy()))


def expected_gradient(estimator, sampler: str) -> Tensor:
    """Of the estimator as a loss: tokens are drawn, then held fixed."""
    leaf = LOGITS.clone().requires_grad_(True)
    rho = leaf.log_softmax(-1) - LOG_REF
    weight, log_ratio = (LOG_PI.exp(), rho) if sampler == "policy" else (LOG_REF.exp(), -rho)
    (grad,) = torch.autograd.grad((weight * estimator(log_ratio)).sum(), leaf)
    return grad


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_are_unbiased_for_the_kl_from_the_distribution_that_was_sampled(estimator):
    rho = LOG_PI - LOG_REF
    assert_close((LOG_PI.exp() * estimator(rho)).sum(), kl(LOG_PI, LOG_REF), **EXACT)
    assert_close((LOG_REF.exp() * estimator(-rho)).sum(), kl(LOG_REF, LOG_PI), **EXACT)
    assert abs(kl(LOG_PI, LOG_REF) - kl(LOG_REF, LOG_PI)) > 0.05  # so the two could not be mixed up


def test_bias_of_k2_is_of_third_order_in_the_log_ratio():
    # E_p[l²/2] − KL = E_p[l³]/6 + ..., since E_p[e^(−l)] = 1: halving the distance divides it by 8.
    def bias(scale: float) -> float:
        log_p = (LOG_REF + scale * table(2)).log_softmax(-1)
        return ((log_p.exp() * kl_k2(log_p - LOG_REF)).sum() - kl(log_p, LOG_REF)).item()

    assert abs(bias(2.0)) > 0.01
    assert bias(0.02) / bias(0.01) == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize(
    ("estimator", "sampler", "direction"),
    [
        (kl_k2, "policy", "reverse"),
        (kl_k3, "policy", "forward"),
        (kl_k1, "reference", "forward"),
        (kl_k3, "reference", "forward"),
    ],
)
def test_expected_gradient_is_that_of_a_kl_and_not_always_of_the_one_estimated(estimator, sampler, direction):
    assert_close(expected_gradient(estimator, sampler), kl_gradient(direction), **EXACT)
    assert (kl_gradient("forward") - kl_gradient("reverse")).abs().max() > 0.01


def test_expected_gradient_of_k1_on_policy_samples_is_zero():
    # E_π[∇ log π] = 0: as a loss it is noise.
    assert_close(expected_gradient(kl_k1, "policy"), torch.zeros(7, dtype=torch.float64), **EXACT)


def test_expected_gradient_of_k2_on_reference_samples_is_of_neither_kl():
    for direction in ("forward", "reverse"):
        assert (expected_gradient(kl_k2, "reference") - kl_gradient(direction)).abs().max() > 0.01


def test_reverse_estimators_on_tokens_of_the_reference_estimate_something_else():
    # Σ π_ref k3(ρ) = Σ π_ref (π_ref/π − 1) − KL(π_ref‖π): a χ² less a KL. Σ π_ref k1(ρ) is −KL(π_ref‖π), negative.
    rho, p_ref = LOG_PI - LOG_REF, LOG_REF.exp()
    chi_square = (p_ref**2 / LOG_PI.exp()).sum() - 1
    k3 = (p_ref * kl_k3(rho)).sum()
    assert_close(k3, chi_square - kl(LOG_REF, LOG_PI), **EXACT)
    assert abs(k3 - kl(LOG_PI, LOG_REF)) > 0.1
    assert_close((p_ref * kl_k1(rho)).sum(), -kl(LOG_REF, LOG_PI), **EXACT)


def test_k2_and_k3_are_never_negative_and_zero_with_no_slope_at_equality():
    log_ratio = (torch.arange(-80, 81, dtype=torch.float64) / 10).requires_grad_(True)
    for estimator in (kl_k2, kl_k3):
        value = estimator(log_ratio)
        assert (value >= 0).all()
        (slope,) = torch.autograd.grad(value.sum(), log_ratio)
        assert value[80].item() == slope[80].item() == 0.0  # log_ratio[80] = 0


def test_k3_of_a_literal_log_ratio():
    # l = log 2: 1/2 − 1 + 0.693147 = 0.193147; l = −log 2: 2 − 1 − 0.693147 = 0.306853.
    log_ratio = torch.tensor([2.0, 0.5], dtype=torch.float64).log()
    assert kl_k3(log_ratio).tolist() == pytest.approx([0.193147, 0.306853], abs=1e-6)


def test_summed_k1_and_k3_of_own_sequences_are_the_kl_between_sequences():
    # Chain rule on the tree: E_π[Σ_t k_t] = E_π[Σ_t KL_t] = Σ_y π(y) log π(y)/π_ref(y).
    tree = build_tree(40)
    logp = torch.randn(15, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(41)).log_softmax(-1)
    rho = torch.where(tree.paths.is_action, (logp - tree.ref_logp)[tree.paths.state, tree.paths.action], 0.0)
    p = torch.where(tree.paths.is_action, logp[tree.paths.state, tree.paths.action], 0.0).sum(-1).exp()
    between_sequences = (p * rho.sum(-1)).sum()
    exact = torch.stack([kl(a, b) for a, b in zip(logp, tree.ref_logp, strict=True)])
    visited = torch.where(tree.paths.is_action, exact[tree.paths.state], 0.0).sum(-1)
    assert_close((p * visited).sum(), between_sequences, **EXACT)
    assert_close((p * kl_k1(rho).sum(-1)).sum(), between_sequences, **EXACT)
    assert_close((p * kl_k3(rho).sum(-1)).sum(), between_sequences, **EXACT)


def test_exact_terms_are_row_means_over_actions_of_their_own_direction():
    v = multi_turn_values(0)
    v = replace(v, kl_forward=multi_turn_values(1).kl)
    for terms, name, kl_of_states in (
        (kl_to_reference(v, alpha=0.7), "kl_ref", v.kl),
        (kl_from_reference(v, alpha=0.7), "kl_forward", v.kl_forward),
    ):
        (term,) = terms
        expected = reference.row_mean(kl_of_states.numpy(), v.is_action.numpy())
        assert_close(term.value.sum(-1), torch.from_numpy(expected), **EXACT)
        assert (term.name, term.unit, term.coef) == (name, "sequence", 0.7)


def test_exact_term_to_the_reference_is_the_one_inside_oreo():
    v = multi_turn_values(0)
    (inside,) = [term for term in oreo_token(v, beta=0.3, alpha=0.7) if term.name == "kl_ref"]
    (alone,) = kl_to_reference(v, alpha=0.7)
    assert_close(alone.value, inside.value, **EXACT)
    assert (alone.unit, alone.coef) == (inside.unit, inside.coef)


def test_forward_term_without_the_forward_kl_is_refused():
    with pytest.raises(ValueError, match=r"kl_forward is None, needs exact KL\(pi_ref \|\| pi\) \[B, T\]"):
        kl_from_reference(multi_turn_values(0), alpha=0.7)
