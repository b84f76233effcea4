"""Losses of world models: what is left out, which way the gradient goes."""

import pytest
import torch
from torch.testing import assert_close

from posttrain.losses.term import total
from posttrain.losses.world_model import (
    LatentModelValues,
    OutcomeValues,
    SimpleModelValues,
    categorical_kl,
    categorical_latent_model,
    simple_model,
    straight_through,
)

N, BITS, GROUPS, CLASSES = 6, 5, 3, 4


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outcome(is_terminal: list[bool]) -> OutcomeValues:
    n = len(is_terminal)
    return OutcomeValues(draw(n, seed=1), draw(n, seed=2), draw(n, seed=3), torch.tensor(is_terminal))


def simple_values(is_terminal: list[bool]) -> SimpleModelValues:
    n = len(is_terminal)
    return SimpleModelValues(
        draw(n, BITS).requires_grad_(), (draw(n, BITS, seed=4) > 0).double(), outcome(is_terminal)
    )


def test_simple_model_terms_are_the_negative_log_likelihoods() -> None:
    # One bit with logit log 3 is on with chance 3/4: seen off, that costs log 4. Reward 1 against a mean of 3 costs
    # half of 2². Logit 0 of going on costs log 2 either way.
    zero = torch.zeros(1, dtype=torch.float64)
    values = SimpleModelValues(
        torch.tensor([[3.0]], dtype=torch.float64).log(),
        torch.zeros(1, 1, dtype=torch.float64),
        OutcomeValues(zero + 3, zero, zero + 1, torch.tensor([False])),
    )
    terms = {term.name: float(term.value) for term in simple_model(values)}
    assert terms["observation"] == pytest.approx(1.3862943611)
    assert terms["reward"] == pytest.approx(2.0)
    assert terms["continuation"] == pytest.approx(0.6931471806)


def test_bits_after_a_terminal_step_teach_nothing_whatever_they_are() -> None:
    values = simple_values([False, True, False, True, False, False])
    terms = {term.name: term for term in simple_model(values)}
    (gradient,) = torch.autograd.grad(terms["observation"].value.sum(), values.next_logit)
    assert_close(terms["observation"].value[[1, 3]], torch.zeros(2, dtype=torch.float64), rtol=0, atol=0)
    assert_close(gradient[[1, 3]], torch.zeros(2, BITS, dtype=torch.float64), rtol=0, atol=0)
    assert (terms["reward"].value[[1, 3]] > 0).all()


def test_loss_of_a_batch_is_that_of_its_ragged_parts() -> None:
    def value(part: slice) -> torch.Tensor:
        whole = simple_values([False, True, False, False, True, False])
        o = whole.outcome
        cut = OutcomeValues(o.reward_mean[part], o.continue_logit[part], o.reward[part], o.is_terminal[part])
        values = SimpleModelValues(whole.next_logit[part], whole.next_observation[part], cut)
        return total(simple_model(values), {"transition": N})

    assert_close(value(slice(0, 2)) + value(slice(2, 6)), value(slice(0, 6)))


def latent_values(q: torch.Tensor, p: torch.Tensor, is_terminal: list[bool]) -> LatentModelValues:
    n = len(is_terminal)
    return LatentModelValues(q, p, draw(n, BITS), (draw(n, BITS, seed=4) > 0).double(), outcome(is_terminal))


def kl_gradients(q: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the latent model's two KL terms, as the step weighs them, to posterior and prior logits."""
    terms = categorical_latent_model(latent_values(q, p, [False] * N))
    kl = sum(term.coef * term.value.sum() for term in terms if term.name.startswith("kl"))
    assert isinstance(kl, torch.Tensor)
    of_q, of_p = torch.autograd.grad(kl, (q, p))
    return of_q, of_p


def test_balanced_kl_gives_the_prior_0_8_and_the_posterior_0_2_of_the_plain_gradient() -> None:
    q, p = draw(N, GROUPS, CLASSES).requires_grad_(), draw(N, GROUPS, CLASSES, seed=5).requires_grad_()
    plain_q, plain_p = torch.autograd.grad(categorical_kl(q, p).sum(), (q, p))
    of_q, of_p = kl_gradients(q, p)
    assert_close(of_q, 0.2 * plain_q)
    assert_close(of_p, 0.8 * plain_p)


def test_balanced_kl_has_the_value_of_the_plain_one() -> None:
    q, p = draw(N, GROUPS, CLASSES), draw(N, GROUPS, CLASSES, seed=5)
    terms = categorical_latent_model(latent_values(q, p, [False] * N))
    value = sum(term.coef * term.value for term in terms if term.name.startswith("kl"))
    log_q, log_p = torch.distributions.Categorical(logits=q), torch.distributions.Categorical(logits=p)
    assert_close(value, torch.distributions.kl_divergence(log_q, log_p).sum(-1))


def test_balanced_kl_is_at_rest_where_prior_and_posterior_agree() -> None:
    q = draw(N, GROUPS, CLASSES).requires_grad_()
    p = (q.detach() + 1.5).requires_grad_()  # logits that differ by a constant are the same distribution
    for gradient in kl_gradients(q, p):
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


def test_latent_model_learns_neither_codes_nor_bits_from_terminal_steps() -> None:
    q, p = draw(N, GROUPS, CLASSES).requires_grad_(), draw(N, GROUPS, CLASSES, seed=5).requires_grad_()
    terms = categorical_latent_model(latent_values(q, p, [True] * N))
    for term in terms:
        if term.name in ("kl_prior", "kl_posterior", "observation"):
            assert_close(term.value, torch.zeros(N, dtype=torch.float64), rtol=0, atol=0)


def test_straight_through_is_the_one_hot_forward_and_the_softmax_jacobian_backward() -> None:
    logit = draw(CLASSES).requires_grad_()
    one_hot = torch.eye(CLASSES, dtype=torch.float64)[2]
    sample = straight_through(one_hot, logit)
    assert torch.equal(sample, one_hot)
    jacobian = torch.stack([torch.autograd.grad(x, logit, retain_graph=True)[0] for x in sample])
    p = logit.detach().softmax(-1)
    assert_close(jacobian, torch.diag(p) - torch.outer(p, p))


def test_logits_that_do_not_match_the_bits_are_refused() -> None:
    values = SimpleModelValues(draw(N, BITS), torch.zeros(N, BITS + 1, dtype=torch.float64), outcome([False] * N))
    with pytest.raises(ValueError, match="needed one per bit"):
        simple_model(values)


def test_simple_model_gradient_agrees_with_finite_differences() -> None:
    values = simple_values([False, True, False, False, False, False])

    def loss(logit: torch.Tensor, mean: torch.Tensor, goes_on: torch.Tensor) -> torch.Tensor:
        changed = OutcomeValues(mean, goes_on, values.outcome.reward, values.outcome.is_terminal)
        return total(simple_model(SimpleModelValues(logit, values.next_observation, changed)), {"transition": N})

    inputs = (draw(N, BITS), draw(N, seed=6), draw(N, seed=7))
    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in inputs))
