"""The tiled autograd function by itself: numerical gradients in float64, and bfloat16 within a derived bound."""

import pytest
import torch
from torch import Tensor

from posttrain.models.tiled_scores import TiledScores

N, D, V, COLUMNS = 4, 5, 11, 3  # three tiles of three columns and one of two
U = 2.0**-8  # unit roundoff of bfloat16, half the distance of 2^-7 from 1 to the next number


def tensors(*, n: int = N, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> list[Tensor]:
    """hidden, weight, bias, ref_hidden, ref_weight, ref_bias, chosen."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, D), (V, D), (V,))
    policy = [scale * torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]
    other = [scale * torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]
    chosen = torch.randint(V, (n,), generator=generator)
    return [*(x.to(dtype) for x in (*policy, *other)), chosen]


@pytest.mark.parametrize("n_kls", [0, 1, 2])  # without a reference, with KL(π‖π'), with KL(π'‖π) too
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_head_trained", [True, False])
def test_gradients_pass_gradcheck(n_kls, has_bias, is_head_trained):
    *inputs, chosen = tensors()
    trained = [inputs[0].requires_grad_(True)]
    trained += [x.requires_grad_(True) for x in inputs[1 : 3 if has_bias else 2] if is_head_trained]
    reference = [*inputs[3:5], inputs[5] if has_bias else None] if n_kls else [None, None, None]

    def scores(*_: Tensor) -> tuple[Tensor, ...]:
        bias = inputs[2] if has_bias else None
        logp, _, _, *kls = TiledScores.apply(*inputs[:2], bias, *reference, chosen, COLUMNS, n_kls == 2)
        return (logp, *kls[:n_kls])

    assert torch.autograd.gradcheck(scores, trained)


@pytest.mark.parametrize("is_head_trained", [True, False])
@pytest.mark.parametrize("output", [3, 4])
def test_gradient_of_one_kl_alone_passes_gradcheck(output, is_head_trained):
    *inputs, chosen = tensors()
    trained = [x.requires_grad_(True) for x in inputs[: 3 if is_head_trained else 1]]
    assert torch.autograd.gradcheck(lambda *_: TiledScores.apply(*inputs, chosen, COLUMNS, True)[output], trained)


def test_a_second_derivative_is_refused():
    *inputs, chosen = tensors()
    hidden = inputs[0].requires_grad_(True)
    logp = TiledScores.apply(*inputs, chosen, COLUMNS)[0]
    (grad,) = torch.autograd.grad(logp.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


def test_scores_do_not_overflow_when_logits_are_far_apart():
    # Logits of 2000 apart: exp overflows float64 at 710. logp is 0 or −2000 to rounding, and entropy is 0.
    weight = torch.tensor([[1000.0], [-1000.0], [0.0]], dtype=torch.float64)
    hidden = torch.ones(2, 1, dtype=torch.float64)
    logp, entropy, *_ = TiledScores.apply(hidden, weight, None, None, None, None, torch.tensor([0, 1]), 1)
    assert logp.tolist() == [0.0, -2000.0]
    assert entropy.tolist() == [0.0, 0.0]


def exact_logit_grad(logits: Tensor, chosen: Tensor) -> Tensor:
    """∂ Σ log π(a) / ∂z = 1[a] − π in float64, its rows summing to 0 as closely as that allows."""
    grad = -logits.double().softmax(-1)
    others = grad.scatter(-1, chosen[:, None], 0.0).sum(-1, keepdim=True)
    return grad.scatter(-1, chosen[:, None], -others)


def test_bfloat16_gradients_with_a_trained_head_stay_within_three_roundings():
    # Given the bfloat16 logits, each term G_v W_v is rounded when G is cast, when a tile's product is written and when
    # the result is: (1 + u)³ − 1 < 3.1 u of Σ |G_v| |W_v|. The weight's gradient is rounded twice. Sums are float32.
    hidden, weight, _, _, _, _, chosen = tensors(n=64, dtype=torch.bfloat16)
    hidden.requires_grad_(True), weight.requires_grad_(True)
    logp = TiledScores.apply(hidden, weight, None, None, None, None, chosen, COLUMNS)[0]
    logp.sum().backward()
    with torch.no_grad():
        logit_grad = exact_logit_grad(hidden @ weight.T, chosen)
        h, w = hidden.double(), weight.double()
        hidden_error = (hidden.grad.double() - logit_grad @ w).abs()
        assert (hidden_error <= 3.1 * U * logit_grad.abs() @ w.abs()).all()
        weight_error = (weight.grad.double() - logit_grad.T @ h).abs()
        assert (weight_error <= 2.1 * U * logit_grad.abs().T @ h.abs()).all()


def test_bfloat16_gradient_with_a_frozen_head_is_precise_for_confident_tokens():
    # Each π_v (W_a − W_v), v ≠ a, is rounded as above, so the error scales with 1 − π(a), below 0.001 mostly.
    # The plain form W_a − Σ π_v W_v would err by u |W_a| whatever π(a) is.
    hidden, weight, _, _, _, _, _ = tensors(n=64, dtype=torch.bfloat16, scale=3.0)
    logits = hidden @ weight.T
    chosen = logits.argmax(-1)
    probability = logits.double().softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
    assert probability.median() > 0.999
    hidden.requires_grad_(True)
    logp = TiledScores.apply(hidden, weight, None, None, None, None, chosen, COLUMNS)[0]
    logp.sum().backward()
    w, others = weight.double(), logits.double().softmax(-1).scatter(-1, chosen[:, None], 0.0)
    expected = others.sum(-1, keepdim=True) * w[chosen] - others @ w
    scale = others.sum(-1, keepdim=True) * w[chosen].abs() + others @ w.abs()
    assert ((hidden.grad.double() - expected).abs() <= 3.1 * U * scale).all()


def forward_kl_problem(is_head_trained: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, the logits' exact gradient π − π' and π + π', of a reference within 1/16 of the policy."""
    hidden, weight, _, _, _, _, chosen = tensors(n=64, dtype=torch.bfloat16)
    ref_hidden = (hidden.float() * (1 + 1 / 16)).bfloat16()
    hidden.requires_grad_(True), weight.requires_grad_(is_head_trained)
    scores = TiledScores.apply(hidden, weight, None, ref_hidden, weight.detach(), None, chosen, COLUMNS, True)
    scores[4].sum().backward()
    with torch.no_grad():
        p, ref_p = ((h @ weight.T).double().softmax(-1) for h in (hidden, ref_hidden))
    return hidden, weight, p - ref_p, p + ref_p


def test_bfloat16_gradient_of_the_forward_kl_with_a_trained_head_scales_with_the_difference():
    # π − π' is formed in float32 and rounded once (u of itself, and 1e-6 of π for float32), then the bound of log π.
    hidden, weight, difference, total = forward_kl_problem(True)
    w = weight.detach().double()
    error = (hidden.grad.double() - difference @ w).abs()
    assert (error <= (3.1 * U * difference.abs() + 1e-6 * total) @ w.abs()).all()
    assert (difference.abs().sum(-1) / total.sum(-1)).median() < 0.05  # so the bound is far below that of π + π'


def test_bfloat16_gradient_of_the_forward_kl_with_a_frozen_head_errs_by_the_sum_of_both():
    # Both pulls are rounded before they are subtracted: three roundings of each, whatever their difference.
    hidden, weight, difference, total = forward_kl_problem(False)
    w = weight.double()
    error = (hidden.grad.double() - difference @ w).abs()
    scale = total @ (w.abs().amax(0, keepdim=True) * 2).expand_as(w)  # |W_v − W_a| <= 2 max |W|
    assert (error <= 3.1 * U * scale).all()
