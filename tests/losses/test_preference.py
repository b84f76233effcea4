"""DPO and its variants against loops and literal numbers, and what they move."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import dpo, dpo_smoothed, implicit_return, ipo, total, without_reference
from posttrain.schema import PairValues, PathScores
from tests import reference
from tests.tree_mdp import multi_turn_values, rows_of

BETA = 0.3
EXACT = {"rtol": 0, "atol": 1e-12}
SIDES = (multi_turn_values(0), multi_turn_values(1))


def pairs() -> PairValues:
    """Four pairs of multi-turn answers; logp of both sides are leaves."""
    sides = (
        PathScores(side.logp.detach().clone().requires_grad_(True), side.ref_logp, side.is_action) for side in SIDES
    )
    return PairValues(*sides)


def one_pair(chosen: float, rejected: float) -> PairValues:
    """One token each, with these log-ratios."""
    is_action = torch.ones(1, 1, dtype=torch.bool)
    logp = [torch.tensor([[x]], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected)]
    return PairValues(*(PathScores(x, torch.zeros(1, 1, dtype=torch.float64), is_action) for x in logp))


def loss_of(objective, v: PairValues, **settings: float) -> Tensor:
    return total(objective(v, **settings), {"pair": len(v.chosen.logp)})


def test_dpo_equals_the_loop_over_tokens():
    expected = reference.dpo(*(rows_of(side) for side in SIDES), beta=BETA)
    assert_close(dpo(pairs(), beta=BETA)[0].value, torch.from_numpy(expected), **EXACT)


def test_dpo_gradient_pulls_all_tokens_of_a_pair_equally():
    # D10: −β σ(h_l − h_w) on each chosen action and the opposite on each rejected one.
    v = pairs()
    chosen, rejected = torch.autograd.grad(dpo(v, beta=BETA)[0].value.sum(), (v.chosen.logp, v.rejected.logp))
    h_w, h_l = (reference.implicit_returns(rows_of(side), beta=BETA) for side in SIDES)
    pull = torch.from_numpy(BETA / (1 + np.exp(h_w - h_l)))[:, None]
    assert_close(chosen, torch.where(v.chosen.is_action, -pull, 0.0), **EXACT)
    assert_close(rejected, torch.where(v.rejected.is_action, pull, 0.0), **EXACT)


@pytest.mark.parametrize(
    ("objective", "settings", "at_reference"),
    [
        (dpo, {}, math.log(2)),
        (dpo_smoothed, {"label_smoothing": 0.2}, math.log(2)),
        (ipo, {}, (1 / (2 * BETA)) ** 2),
    ],
)
def test_loss_at_the_reference_is_known_and_no_pair_is_called_right(objective, settings, at_reference):
    # D10: h = 0 for every answer. A tie is not a right answer, so accuracy starts at 0, not 1/2.
    v = pairs()
    v = PairValues(replace(v.chosen, ref_logp=v.chosen.logp), replace(v.rejected, ref_logp=v.rejected.logp))
    terms = {term.name: term.value for term in objective(v, beta=BETA, **settings)}
    assert terms["preference"].tolist() == pytest.approx([at_reference] * 4, abs=1e-12)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert torch.count_nonzero(terms[name]) == 0


def test_smoothed_loss_of_a_literal_margin():
    # margin 0.5 · (0.3 + 0.1) = 0.2: −log σ(0.2) = 0.598139, −log σ(−0.2) = 0.798139;
    # 0.9 · 0.598139 + 0.1 · 0.798139 = 0.618139.
    assert loss_of(dpo, one_pair(0.3, -0.1), beta=0.5).item() == pytest.approx(0.598139, abs=1e-6)
    smoothed = loss_of(dpo_smoothed, one_pair(0.3, -0.1), beta=0.5, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.618139, abs=1e-6)


def test_smoothing_of_zero_is_dpo():
    v = pairs()
    assert_close(dpo_smoothed(v, beta=BETA, label_smoothing=0.0)[0].value, dpo(v, beta=BETA)[0].value, **EXACT)


def test_ipo_loss_of_a_literal_margin():
    # Log-ratios 1.5 and −0.5 differ by 2; 1/(2β) = 5 at β = 0.1: (2 − 5)² = 9.
    assert loss_of(ipo, one_pair(1.5, -0.5), beta=0.1).item() == pytest.approx(9.0, abs=1e-12)


@pytest.mark.parametrize(
    ("objective", "settings", "margin"),
    [(dpo_smoothed, {"label_smoothing": 0.1}, math.log(9)), (ipo, {}, 0.5)],
)
def test_gradient_is_zero_at_the_margin_where_the_loss_is_lowest(objective, settings, margin):
    # cDPO: σ(margin) = 1 − ε. IPO: log-ratios differ by 1/(2β), a margin of 1/2. dpo has no such point.
    v = one_pair(margin / BETA, 0.0)
    at_lowest, *_ = torch.autograd.grad(loss_of(objective, v, beta=BETA, **settings), v.chosen.logp)
    assert abs(at_lowest.item()) < 1e-12
    short = one_pair(margin / BETA - 1, 0.0)
    before, *_ = torch.autograd.grad(loss_of(objective, short, beta=BETA, **settings), short.chosen.logp)
    assert before.item() < -1e-3  # descending raises the margin
    long = one_pair(margin / BETA + 1, 0.0)
    after, *_ = torch.autograd.grad(loss_of(objective, long, beta=BETA, **settings), long.chosen.logp)
    assert after.item() > 1e-3


def test_without_reference_the_return_is_beta_times_the_log_probability():
    v = without_reference(pairs())
    expected = [
        BETA * sum(x for x, is_in in zip(logp, mask, strict=True) if is_in)
        for logp, mask in zip(SIDES[0].logp.tolist(), SIDES[0].is_action.tolist(), strict=True)
    ]
    assert implicit_return(v.chosen, beta=BETA).tolist() == pytest.approx(expected, abs=1e-12)
    assert (dpo(v, beta=BETA)[0].value - dpo(pairs(), beta=BETA)[0].value).abs().max() > 0.01


@pytest.mark.parametrize(("objective", "settings"), [(dpo, {}), (dpo_smoothed, {"label_smoothing": 0.2}), (ipo, {})])
def test_metrics_equal_their_loops(objective, settings):
    h_w, h_l = (reference.implicit_returns(rows_of(side), beta=BETA) for side in SIDES)
    logps = [
        [sum(row[t] for t in range(12) if mask[t]) for row, mask in zip(rows.logp, rows.is_action, strict=True)]
        for rows in map(rows_of, SIDES)
    ]
    expected = {
        "rewards/chosen": h_w,
        "rewards/rejected": h_l,
        "rewards/margins": h_w - h_l,
        "rewards/accuracies": [float(w > loser) for w, loser in zip(h_w, h_l, strict=True)],
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
    }
    assert 0 < sum(expected["rewards/accuracies"]) < 4
    metrics = {term.name: term for term in objective(pairs(), beta=BETA, **settings) if not term.coef}
    assert metrics.keys() == expected.keys()
    for name, metric in metrics.items():
        assert metric.unit == "pair"
        assert metric.value.tolist() == pytest.approx(list(expected[name]), abs=1e-12)


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_dpo_stays_finite_at_margins_that_overflow_an_exponential(margin):
    # −log σ(m) is −m for m << 0 and 0 for m >> 0, with slopes −1 and 0.
    v = one_pair(margin, 0.0)
    loss = loss_of(dpo, v, beta=1.0)
    assert loss.item() == max(-margin, 0.0)
    (grad,) = torch.autograd.grad(loss, v.chosen.logp)
    assert grad.item() == (-1.0 if margin < 0 else 0.0)


def test_pair_losses_pass_gradcheck():
    v = pairs()

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        moved = PairValues(replace(v.chosen, logp=chosen), replace(v.rejected, logp=rejected))
        by_name = (dpo(moved, beta=BETA), dpo_smoothed(moved, beta=BETA, label_smoothing=0.2), ipo(moved, beta=BETA))
        return torch.stack([terms[0].value for terms in by_name])

    assert torch.autograd.gradcheck(loss, (v.chosen.logp, v.rejected.logp))


def test_sides_of_different_length_are_refused():
    v = pairs()
    three = PathScores(v.rejected.logp[:3], v.rejected.ref_logp[:3], v.rejected.is_action[:3])
    with pytest.raises(ValueError, match=r"4 chosen rows, 3 rejected: needed one of each per pair"):
        dpo(replace(v, rejected=three), beta=BETA)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, float("nan")])
def test_label_smoothing_out_of_range_is_refused(label_smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing is .*, needs 0 <= e < 0.5"):
        dpo_smoothed(pairs(), beta=BETA, label_smoothing=label_smoothing)
