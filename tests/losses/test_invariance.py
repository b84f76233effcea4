"""What must not change any loss: padding, garbage under the masks, and how a batch is split."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import (
    critic_only,
    dpo,
    dpo_smoothed,
    grpo,
    grpo_token_mean,
    ipo,
    kl_from_reference,
    kl_to_reference,
    oreo_one_step,
    oreo_response,
    oreo_step,
    oreo_token,
    reinforce,
    total,
    without_reference,
)
from posttrain.schema import PairValues, PathScores, RolloutValues
from tests.tree_mdp import multi_turn_values

EXACT = {"rtol": 0, "atol": 1e-13}
LEARNED = ("logp", "value", "kl", "kl_forward")
N_ROWS = 4


def token_values(seed: int):
    v = multi_turn_values(seed)
    return replace(v, kl_forward=multi_turn_values(seed + 100).kl)


def pair_values(seed: int) -> PairValues:
    sides = (multi_turn_values(seed), multi_turn_values(seed + 100))
    return PairValues(*(PathScores(side.logp, side.ref_logp, side.is_action) for side in sides))


def rollout_values(seed: int) -> RolloutValues:
    v, other = multi_turn_values(seed), multi_turn_values(seed + 100)
    return RolloutValues(
        v.logp, v.logp.detach() + 0.3 * other.value.detach(), other.reward, v.kl, v.entropy, v.is_action
    )


CASES: dict[str, tuple[Callable, Callable]] = {
    "oreo_token": (partial(oreo_token, beta=0.3, alpha=0.7), token_values),
    "oreo_step": (partial(oreo_step, beta=0.3, alpha=0.7), token_values),
    "oreo_response": (partial(oreo_response, beta=0.3, alpha=0.7), token_values),
    "oreo_one_step": (partial(oreo_one_step, beta=0.3, alpha=0.7), token_values),
    "critic_only": (partial(critic_only, beta=0.3), token_values),
    "kl_to_reference": (partial(kl_to_reference, alpha=0.7), token_values),
    "kl_from_reference": (partial(kl_from_reference, alpha=0.7), token_values),
    "dpo": (partial(dpo, beta=0.3), pair_values),
    "dpo_smoothed": (partial(dpo_smoothed, beta=0.3, label_smoothing=0.2), pair_values),
    "ipo": (partial(ipo, beta=0.3), pair_values),
    "dpo_without_reference": (lambda v: dpo(without_reference(v), beta=0.3), pair_values),
    "reinforce": (partial(reinforce, alpha=0.7), rollout_values),
    "grpo": (partial(grpo, clip_low=0.2, clip_high=0.3, alpha=0.7), rollout_values),
    "grpo_token_mean": (partial(grpo_token_mean, clip_low=0.2, clip_high=0.3, alpha=0.7), rollout_values),
}
ALL = pytest.mark.parametrize(("objective", "values"), CASES.values(), ids=CASES)


def changed(v, change: Callable):
    """The same dataclass with change(owner, name, tensor) in place of every tensor, nested ones included."""
    new = {}
    for field in fields(v):
        x = getattr(v, field.name)
        if x is not None:
            new[field.name] = change(v, field.name, x) if isinstance(x, Tensor) else changed(x, change)
    return replace(v, **new)


def leaves(v):
    """The same numbers with fresh leaves for what networks learn."""
    return changed(v, lambda _, name, x: x.detach().clone().requires_grad_(name in LEARNED))


def learned_tensors(v) -> list[Tensor]:
    found: list[Tensor] = []
    changed(v, lambda _, name, x: found.append(x) or x if name in LEARNED else x)
    return found


def counts_of(v) -> dict[str, float]:
    n_actions: list[int] = []
    changed(v, lambda _, name, x: n_actions.append(int(x.sum())) or x if name == "is_action" else x)
    return {"sequence": N_ROWS, "pair": N_ROWS, "token": sum(n_actions)}


def loss_and_gradients(objective, v, counts) -> tuple[Tensor, ...]:
    loss = total(objective(v), counts)
    return loss.detach(), *torch.autograd.grad(loss, learned_tensors(v), materialize_grads=True)


def pad(x: Tensor, n: int) -> Tensor:
    return torch.cat((x.detach(), torch.zeros(len(x), n, dtype=x.dtype)), dim=-1)


def dirtied(v, garbage: float):
    def fill(owner, name: str, x: Tensor) -> Tensor:
        if name.startswith("is_") or name == "reward":  # rewards are data; the collator writes 0 off the actions
            return x
        return torch.where(owner.is_state if name == "value" else owner.is_action, x, garbage)

    return leaves(changed(v, fill))


def rows(v, part: slice):
    return leaves(changed(v, lambda _, __, x: x[part]))


@ALL
def test_loss_and_gradients_are_unchanged_when_padding_is_appended(objective, values):
    v = leaves(values(0))
    padded = leaves(changed(v, lambda _, __, x: pad(x, 5)))
    loss, *grads = loss_and_gradients(objective, v, counts_of(v))
    padded_loss, *padded_grads = loss_and_gradients(objective, padded, counts_of(v))
    assert_close(padded_loss, loss, **EXACT)
    assert any(grad.abs().max() > 1e-3 for grad in grads)
    for grad, padded_grad in zip(grads, padded_grads, strict=True):
        assert_close(padded_grad, pad(grad, 5), **EXACT)


@ALL
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_loss_and_gradients_are_unchanged_by_garbage_under_the_masks(objective, values, garbage):
    v = leaves(values(1))
    dirty = dirtied(v, garbage)
    assert not all(torch.isfinite(x).all() for x in learned_tensors(dirty)) or garbage == 1e300
    clean = loss_and_gradients(objective, v, counts_of(v))
    for x, y in zip(loss_and_gradients(objective, dirty, counts_of(v)), clean, strict=True):
        assert_close(x, y, **EXACT)


@ALL
def test_metrics_are_unchanged_by_garbage_under_the_masks(objective, values):
    v = leaves(values(1))
    for clean, dirty in zip(objective(v), objective(dirtied(v, float("nan"))), strict=True):
        assert_close(dirty.value, clean.value, **EXACT)


@ALL
def test_metrics_carry_no_gradient(objective, values):
    for term in objective(leaves(values(1))):
        assert term.value.requires_grad == (term.coef != 0), term.name


@ALL
@pytest.mark.parametrize("split", [[4], [1, 3], [2, 1, 1]])
def test_gradient_is_unchanged_when_the_batch_is_split_raggedly(objective, values, split):
    # Each piece divides by the counts of the whole batch, so losses and gradients of the pieces add up.
    v = leaves(values(2))
    whole_loss, *whole = loss_and_gradients(objective, v, counts_of(v))
    ends = torch.tensor([0, *split]).cumsum(0).tolist()
    pieces = [rows(v, slice(a, b)) for a, b in pairwise(ends)]
    parts = [loss_and_gradients(objective, piece, counts_of(v)) for piece in pieces]
    losses, *grads = zip(*parts, strict=True)
    assert_close(sum(losses), whole_loss, **EXACT)
    for grad, expected in zip(grads, whole, strict=True):
        assert_close(torch.cat(grad), expected, **EXACT)


@ALL
def test_mean_of_micro_batch_means_would_not_be_the_loss(objective, values):
    # Guards the test above: with ragged pieces, counts local to a piece give another number.
    v = leaves(values(2))
    whole = total(objective(v), counts_of(v))
    local = []
    for part in (slice(0, 1), slice(1, 4)):
        piece = rows(v, part)
        n_rows = part.stop - part.start
        local.append(total(objective(piece), {**counts_of(piece), "sequence": n_rows, "pair": n_rows}))
    assert abs((local[0] + local[1]) / 2 - whole) > 0.001


@ALL
def test_row_without_an_action_has_no_gradient_and_leaves_the_others_theirs(objective, values):
    v = leaves(values(3))
    is_kept = torch.tensor([[True], [True], [True], [False]])
    emptied = leaves(changed(v, lambda _, name, x: x & is_kept if name.startswith("is_") else x))
    kept = rows(v, slice(0, 3))
    _, *grads = loss_and_gradients(objective, emptied, counts_of(kept))
    _, *expected = loss_and_gradients(objective, kept, counts_of(kept))
    for grad, without in zip(grads, expected, strict=True):
        assert_close(grad[:3], without, **EXACT)
        assert torch.count_nonzero(grad[3]) == 0
