"""The tiled autograd function by itself: numerical gradients in float64, and bfloat16 within a derived bound."""

import pytest
import torch
from torch import Tensor

from posttrain.models.tiled_scores import TiledScores

N, D, V, COLUMNS = 4, 5, 11, 3  # three tiles of three columns and one of two
U = 2.0**-9  # unit roundoff of bfloat16: 8 significant bits


def tensors(*, n: int = N, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> list[Tensor]:
    """hidden, weight, bias, ref_hidden, ref_weight, ref_bias, chosen."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, D), (V, D), (V,))
    policy = [scale * torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]
    other = [scale * torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]
    chosen = torch.randint(V, (n,), generator=generator)
    return [*(x.to(dtype) for x in (*policy, *other)), chosen]


@pytest.mark.parametrize("has_reference", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_head_trained", [True, False])
def test_gradients_pass_gradcheck(has_reference, has_bias, is_head_trained):
    *inputs, chosen = tensors()
    trained = [inputs[0].requires_grad_(True)]
    trained += [x.requires_grad_(True) for x in inputs[1 : 3 if has_bias else 2] if is_head_trained]
    reference = [*inputs[3:5], inputs[5] if has_bias else None] if has_reference else [None, None, None]

    def scores(*_: Tensor) -> tuple[Tensor, ...]:
        bias = inputs[2] if has_bias else None
        logp, _entropy, _ref_logp, kl = TiledScores.apply(*inputs[:2], bias, *reference, chosen, COLUMNS)
        return (logp, kl) if has_reference else (logp,)

    assert torch.autograd.gradcheck(scores, trained)


def test_gradient_of_the_kl_alone_passes_gradcheck():
    *inputs, chosen = tensors()
    trained = [x.requires_grad_(True) for x in inputs[:3]]
    assert torch.autograd.gradcheck(lambda *_: TiledScores.apply(*inputs, chosen, COLUMNS)[3], trained)


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
    logp, entropy, _, _ = TiledScores.apply(hidden, weight, None, None, None, None, torch.tensor([0, 1]), 1)
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
