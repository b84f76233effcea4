"""What must not change the loss: padding, garbage under the masks, and how a batch is split."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import oreo_step, oreo_token, total
from posttrain.schema import TokenValues
from tests.tree_mdp import multi_turn_values

OBJECTIVES = pytest.mark.parametrize("objective", [oreo_token, oreo_step])
EXACT = {"rtol": 0, "atol": 1e-13}
MASKED_BY_ACTION = ("logp", "ref_logp", "kl", "entropy")
MASKED_BY_STATE = ("value",)


def leaves(v: TokenValues) -> TokenValues:
    """The same numbers with fresh leaves for logp, value and kl."""
    return replace(
        v, **{name: getattr(v, name).detach().clone().requires_grad_(True) for name in ("logp", "value", "kl")}
    )


def loss_and_gradients(objective, v: TokenValues, n_rows: int) -> tuple[Tensor, ...]:
    loss = total(objective(v, beta=0.3, alpha=0.7), {"sequence": n_rows})
    return loss.detach(), *torch.autograd.grad(loss, (v.logp, v.value, v.kl))


def pad(x: Tensor, n: int) -> Tensor:
    return torch.cat((x.detach(), torch.full((len(x), n), 0, dtype=x.dtype)), dim=-1)


@OBJECTIVES
def test_loss_and_gradients_are_unchanged_when_padding_is_appended(objective):
    v = leaves(multi_turn_values(0))
    padded = leaves(TokenValues(*(pad(getattr(v, field.name), 5) for field in fields(v))))
    loss, *grads = loss_and_gradients(objective, v, 4)
    padded_loss, *padded_grads = loss_and_gradients(objective, padded, 4)
    assert_close(padded_loss, loss, **EXACT)
    for grad, padded_grad in zip(grads, padded_grads, strict=True):
        assert_close(padded_grad, pad(grad, 5), **EXACT)


@OBJECTIVES
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_loss_and_gradients_are_unchanged_by_garbage_under_the_masks(objective, garbage):
    v = leaves(multi_turn_values(1))
    filled = {name: torch.where(v.is_action, getattr(v, name), garbage) for name in MASKED_BY_ACTION}
    filled |= {name: torch.where(v.is_state, getattr(v, name), garbage) for name in MASKED_BY_STATE}
    dirty = leaves(replace(v, **filled))
    assert not torch.isfinite(dirty.logp).all() or garbage == 1e300
    for clean, changed in zip(
        loss_and_gradients(objective, v, 4), loss_and_gradients(objective, dirty, 4), strict=True
    ):
        assert_close(changed, clean, **EXACT)


@OBJECTIVES
def test_metrics_are_unchanged_by_garbage_under_the_masks(objective):
    v = multi_turn_values(1)
    nan = float("nan")
    dirty = replace(
        v,
        logp=torch.where(v.is_action, v.logp, nan),
        entropy=torch.where(v.is_action, v.entropy, nan),
        value=torch.where(v.is_state, v.value, nan),
    )
    for clean, changed in zip(objective(v, beta=0.3, alpha=0.7), objective(dirty, beta=0.3, alpha=0.7), strict=True):
        assert_close(changed.value, clean.value, **EXACT)


@OBJECTIVES
@pytest.mark.parametrize("split", [[4], [1, 3], [2, 1, 1]])
def test_gradient_is_unchanged_when_the_batch_is_split_raggedly(objective, split):
    # Each piece divides by the count of the whole batch, 4, so losses and gradients of the pieces add up.
    v = leaves(multi_turn_values(2))
    whole_loss, *whole = loss_and_gradients(objective, v, 4)
    pieces = zip(*(getattr(v, field.name).split(split) for field in fields(v)), strict=True)
    parts = [loss_and_gradients(objective, leaves(TokenValues(*piece)), 4) for piece in pieces]
    losses, *grads = zip(*parts, strict=True)
    assert_close(sum(losses), whole_loss, **EXACT)
    for grad, expected in zip(grads, whole, strict=True):
        assert_close(torch.cat(grad), expected, **EXACT)


@OBJECTIVES
def test_mean_of_micro_batch_means_would_not_be_the_loss(objective):
    # Guards the test above: with ragged pieces, counts local to a piece give another number.
    v = multi_turn_values(2)
    pieces = [
        TokenValues(*(getattr(v, field.name)[rows] for field in fields(v))) for rows in (slice(0, 1), slice(1, 4))
    ]
    local = [total(objective(piece, beta=0.3, alpha=0.7), {"sequence": len(piece.logp)}) for piece in pieces]
    whole = total(objective(v, beta=0.3, alpha=0.7), {"sequence": 4})
    assert abs((local[0] + local[1]) / 2 - whole) > 0.01


@OBJECTIVES
def test_row_without_a_state_adds_nothing_and_keeps_gradients_finite(objective):
    v = leaves(multi_turn_values(3))
    empty = torch.tensor([[True], [True], [True], [False]])
    emptied = replace(v, is_action=v.is_action & empty, is_state=v.is_state & empty)
    _, *grads = loss_and_gradients(objective, emptied, 4)
    kept = leaves(TokenValues(*(getattr(v, field.name)[:3] for field in fields(v))))
    _, *expected = loss_and_gradients(objective, kept, 4)
    for grad, without in zip(grads, expected, strict=True):
        assert_close(grad[:3], without, **EXACT)
        assert torch.count_nonzero(grad[3]) == 0
