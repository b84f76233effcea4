"""Each objective of tests.objectives against what all of them owe: gradients where they belong and nowhere else, no
dependence on padding or on how a batch is split, and rest where the right answer is known.

The fifth property, packed rows against padded ones, needs networks: tests/models/test_packing_objectives.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain import losses
from posttrain.losses import total
from posttrain.schema import TokenValues
from tests.objectives import CASES, Case, Values
from tests.tree_mdp import multi_turn_values

EXACT = {"rtol": 0, "atol": 1e-13}
LEARNED = ("logp", "value", "kl", "kl_forward")
N_ITEMS = 4  # pairs, or rows of anything else
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# On values of their own, without tokens; padding, gradients and rest are tested in test_gflownet.py and
# test_one_residual.py.
OF_SMALL_DOMAINS = {
    "detailed_balance",
    "flow_matching",
    "sub_trajectory_balance",
    "td_squared",
    "trajectory_balance",
    "var_grad",
}


def values_of(case: Case, seed: int) -> Values:
    """Four items, read from a batch of eight rows: pairs take two rows each, the others leave four rows out."""
    parts = [multi_turn_values(seed), multi_turn_values(seed + 100)]
    parts = [replace(v, kl_forward=multi_turn_values(seed + 200 + i).kl) for i, v in enumerate(parts)]
    both = {f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(TokenValues)}
    v = case.read(TokenValues(**both))
    return leaves(changed(v, lambda _, __, x: x[:N_ITEMS]))


def changed(v: Any, change: Callable[[Any, str, Tensor], Tensor]) -> Any:
    """The same dataclass with change(owner, name, tensor) in place of every tensor, nested ones included."""
    new = {}
    for field in fields(v):
        x = getattr(v, field.name)
        if x is not None:
            new[field.name] = change(v, field.name, x) if isinstance(x, Tensor) else changed(x, change)
    return replace(v, **new)


def leaves(v: Any) -> Any:
    """The same numbers with fresh leaves for what networks learn."""
    return changed(v, lambda _, name, x: x.detach().clone().requires_grad_(name in LEARNED))


def tensors_of(v: Any, names: Callable[[str], bool]) -> list[tuple[str, Tensor, Tensor]]:
    """(field, tensor, where it counts) of the fields so named, of both sides of pairs."""
    found: list[tuple[str, Tensor, Tensor]] = []

    def look(owner: Any, name: str, x: Tensor) -> Tensor:
        if names(name):
            found.append((name, x, owner.is_state if name == "value" else owner.is_action))
        return x

    changed(v, look)
    return found


def learned_tensors(v: Any) -> list[Tensor]:
    return [x for _, x, _ in tensors_of(v, LEARNED.__contains__)]


def counts_of(v: Any) -> dict[str, float]:
    n_actions = sum(int(x.sum()) for _, x, _ in tensors_of(v, "is_action".__eq__))
    return {"sequence": N_ITEMS, "pair": N_ITEMS, "token": n_actions}


def loss_and_gradients(case: Case, v: Any, counts: dict[str, float]) -> tuple[Tensor, ...]:
    loss = total(case(v), counts)
    return loss.detach(), *torch.autograd.grad(loss, learned_tensors(v), materialize_grads=True)


def pad(x: Tensor, n: int) -> Tensor:
    return torch.cat((x.detach(), torch.zeros(len(x), n, dtype=x.dtype)), dim=-1)


def dirtied(v: Any, garbage: float) -> Any:
    def fill(owner: Any, name: str, x: Tensor) -> Tensor:
        if name.startswith("is_") or name == "reward":  # rewards are data; the collator writes 0 off the actions
            return x
        return torch.where(owner.is_state if name == "value" else owner.is_action, x, garbage)

    return leaves(changed(v, fill))


def rows(v: Any, part: slice) -> Any:
    return leaves(changed(v, lambda _, __, x: x[part]))


def test_every_public_objective_has_its_line_in_the_matrix():
    functions = [f for name in losses.__all__ if inspect.isfunction(f := getattr(losses, name))]
    objectives = {f for f in functions if inspect.signature(f).return_annotation == "tuple[Term, ...]"}
    assert {f.__name__ for f in objectives} - OF_SMALL_DOMAINS == {case.function.__name__ for case in CASES.values()}
    assert {f.__name__ for f in objectives} >= OF_SMALL_DOMAINS


@ALL
def test_each_term_moves_its_own_field_under_its_mask_and_nothing_else(case):
    # Every number but the data's reward gets a leaf here, those too that networks hand over without a gradient: the
    # reference, the behaviour, the advantage. Exactly 0, not small: a stop-gradient leaves nothing.
    v = changed(values_of(case, 0), lambda _, __, x: x.detach().requires_grad_(x.is_floating_point()))
    every = tensors_of(v, lambda name: not name.startswith("is_") and name != "reward")
    terms = {term.name: term for term in case(v) if term.coef}
    assert terms.keys() == case.moves.keys()
    for name, term in terms.items():
        grads = torch.autograd.grad(
            term.value.sum(), [x for _, x, _ in every], retain_graph=True, materialize_grads=True
        )
        for (field, _, is_in), grad in zip(every, grads, strict=True):
            assert torch.count_nonzero(grad[~is_in]) == 0, (name, field)
            assert (torch.count_nonzero(grad) > 0) == (field == case.moves[name]), (name, field)


@ALL
def test_metrics_carry_no_gradient(case):
    for term in case(values_of(case, 1)):
        assert term.value.requires_grad == (term.coef != 0), term.name


@ALL
def test_loss_and_gradients_are_unchanged_when_padding_is_appended(case):
    v = values_of(case, 0)
    padded = leaves(changed(v, lambda _, __, x: pad(x, 5)))
    loss, *grads = loss_and_gradients(case, v, counts_of(v))
    padded_loss, *padded_grads = loss_and_gradients(case, padded, counts_of(v))
    assert_close(padded_loss, loss, **EXACT)
    assert any(grad.abs().max() > 1e-3 for grad in grads)
    for grad, padded_grad in zip(grads, padded_grads, strict=True):
        assert_close(padded_grad, pad(grad, 5), **EXACT)


@ALL
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_loss_and_gradients_are_unchanged_by_garbage_under_the_masks(case, garbage):
    v = values_of(case, 1)
    dirty = dirtied(v, garbage)
    assert not all(torch.isfinite(x).all() for x in learned_tensors(dirty)) or garbage == 1e300
    clean = loss_and_gradients(case, v, counts_of(v))
    for x, y in zip(loss_and_gradients(case, dirty, counts_of(v)), clean, strict=True):
        assert_close(x, y, **EXACT)


@ALL
def test_metrics_are_unchanged_by_garbage_under_the_masks(case):
    v = values_of(case, 1)
    for clean, dirty in zip(case(v), case(dirtied(v, float("nan"))), strict=True):
        assert_close(dirty.value, clean.value, **EXACT)


@ALL
@pytest.mark.parametrize("split", [[4], [1, 3], [2, 1, 1]])
def test_gradient_is_unchanged_when_the_batch_is_split_raggedly(case, split):
    # Each piece divides by the counts of the whole batch, so losses and gradients of the pieces add up.
    v = values_of(case, 2)
    whole_loss, *whole = loss_and_gradients(case, v, counts_of(v))
    ends = torch.tensor([0, *split]).cumsum(0).tolist()
    pieces = [rows(v, slice(a, b)) for a, b in pairwise(ends)]
    parts = [loss_and_gradients(case, piece, counts_of(v)) for piece in pieces]
    losses_of_parts, *grads = zip(*parts, strict=True)
    assert_close(sum(losses_of_parts), whole_loss, **EXACT)
    for grad, expected in zip(grads, whole, strict=True):
        assert_close(torch.cat(grad), expected, **EXACT)


@ALL
def test_mean_of_micro_batch_means_would_not_be_the_loss(case):
    # Guards the test above: with ragged pieces, counts local to a piece give another number.
    v = values_of(case, 2)
    whole = total(case(v), counts_of(v))
    local = []
    for part in (slice(0, 1), slice(1, 4)):
        piece = rows(v, part)
        n_rows = part.stop - part.start
        local.append(total(case(piece), {**counts_of(piece), "sequence": n_rows, "pair": n_rows}))
    assert abs((local[0] + local[1]) / 2 - whole) > 0.001


@ALL
def test_row_without_an_action_has_no_gradient_and_leaves_the_others_theirs(case):
    v = values_of(case, 3)
    is_kept = torch.tensor([[True], [True], [True], [False]])
    emptied = leaves(changed(v, lambda _, name, x: x & is_kept if name.startswith("is_") else x))
    kept = rows(v, slice(0, 3))
    _, *grads = loss_and_gradients(case, emptied, counts_of(kept))
    _, *expected = loss_and_gradients(case, kept, counts_of(kept))
    for grad, without in zip(grads, expected, strict=True):
        assert_close(grad[:3], without, **EXACT)
        assert torch.count_nonzero(grad[3]) == 0


@ALL
def test_gradient_is_zero_at_the_known_fixed_point_and_not_beside_it(case):
    # Sums of at most 961 numbers of order 1 that cancel: 1e-12. Beside it: the tables moved by noise of 0.1.
    fixed_point = case.rests_at()

    def gradients(tables: list[Tensor]) -> tuple[Tensor, ...]:
        tables = [table.clone().requires_grad_(True) for table in tables]
        return torch.autograd.grad(fixed_point.loss(*tables), tables)

    for grad in gradients(list(fixed_point.at)):
        assert grad.abs().max() < 1e-12
    generator = torch.Generator().manual_seed(0)
    for moved in range(len(fixed_point.at)):
        tables = [table.clone() for table in fixed_point.at]
        tables[moved] += 0.1 * torch.randn(tables[moved].shape, dtype=torch.float64, generator=generator)
        assert gradients(tables)[moved].abs().max() > 1e-3
