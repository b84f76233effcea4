"""Sums along a path against loops and literal numbers."""

import math

import pytest
import torch

from posttrain.losses import (
    afterstates,
    at_next_state,
    first_state,
    later_sum,
    log_ratio,
    next_state_index,
    path_residual,
    per_sequence_mean,
    suffix_sum,
    sum_to_next_state,
)


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_suffix_and_later_sums_of_a_literal_row():
    # 1 + 2 + 4 = 7, 2 + 4 = 6, 4; later sums leave out the position itself. Small integers: exact.
    assert suffix_sum(row(1, 2, 4)).tolist() == [[7, 6, 4]]
    assert later_sum(row(1, 2, 4)).tolist() == [[6, 4, 0]]


def test_later_sum_is_exactly_zero_at_the_last_position_of_rounding_prone_rows():
    x = torch.full((1, 7), 0.1)
    assert later_sum(x)[0, -1].item() == 0.0


def test_path_residual_is_start_minus_gain_minus_end():
    assert path_residual(row(5.0), row(1.5), row(2.0)).tolist() == [[1.5]]
    assert path_residual(row(5.0), row(1.5)).tolist() == [[3.5]]


def test_suffix_sum_of_bfloat16_is_summed_in_float32():
    # 1,500 terms of about 0.05 add up to about 75, where float32 steps are 2^-17 = 7.6e-6; rounding errors mostly
    # cancel, so 13 steps (1e-4) bound them. bfloat16 steps are 0.5 there, and a sum held in it errs by more than 0.1.
    x = (torch.rand(1, 1500, generator=torch.Generator().manual_seed(0)) / 10).bfloat16()
    exact = [math.fsum(x[0, t:].double().tolist()) for t in range(1500)]
    ours = suffix_sum(x)
    assert ours.dtype == torch.float32
    assert (ours.double() - torch.tensor([exact])).abs().max() < 1e-4
    in_bfloat16 = x.flip(-1).cumsum(-1).flip(-1)
    assert (in_bfloat16.double() - torch.tensor([exact])).abs().max() > 0.1


def test_log_ratio_is_exactly_zero_off_actions_even_for_infinite_inputs():
    inf = float("inf")
    is_action = torch.tensor([[True, False, False, False]])
    rho = log_ratio(row(-1.0, -inf, float("nan"), 2.0), row(-1.5, -inf, 0.0, -3.0), is_action)
    assert rho.tolist() == [[0.5, 0.0, 0.0, 0.0]]


def test_log_ratio_names_both_shapes_when_they_differ():
    with pytest.raises(ValueError, match=r"ref_logp is \(1, 3\), logp is \(1, 2\): was the reference scored before"):
        log_ratio(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("is_state", "expected"),
    [
        ([1, 1, 1], [1, 2, 3]),
        ([1, 0, 0, 1, 0], [3, 3, 3, 5, 5]),
        ([0, 0, 1], [2, 2, 3]),
        ([0, 0], [2, 2]),
    ],
)
def test_next_state_index_is_the_first_state_strictly_later(is_state, expected):
    assert next_state_index(torch.tensor([is_state], dtype=torch.bool)).tolist() == [expected]


def test_per_sequence_mean_sums_to_the_mean_of_each_row_and_to_zero_for_an_empty_row():
    x = torch.tensor([[2.0, 4.0, 100.0], [6.0, 7.0, 8.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    per_item = per_sequence_mean(x, mask)
    assert per_item.tolist() == [[1.0, 2.0, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 0.0]]
    assert per_item.sum(-1).tolist() == [3.0, 7.0, 0.0]


def test_sums_pass_gradcheck():
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, False, False]])
    assert torch.autograd.gradcheck(suffix_sum, x)
    assert torch.autograd.gradcheck(later_sum, x)
    assert torch.autograd.gradcheck(lambda y: sum_to_next_state(y, mask), x)
    assert torch.autograd.gradcheck(lambda y: at_next_state(y, mask), x)
    assert torch.autograd.gradcheck(lambda y: per_sequence_mean(y, mask), x)
    assert torch.autograd.gradcheck(lambda y: log_ratio(y, torch.ones(2, 5), mask), x)


def test_sum_to_next_state_adds_each_stretch_and_nothing_before_the_first_state():
    # States 1 and 3: stretches {1, 2} and {3, 4}; what stands before the first state belongs to none.
    is_state = torch.tensor([[False, True, False, True, False]])
    sums = sum_to_next_state(row(100, 1, 2, 4, 8), is_state)
    assert sums[is_state].tolist() == [3, 12]


def test_sum_to_next_state_keeps_small_numbers_beside_a_large_sum():
    # In float32 a suffix sum of 10^8 has steps of 8, so a difference of two of them would read 1 as 0.
    x = torch.tensor([[1.0, 1e8]])
    assert sum_to_next_state(x, torch.tensor([[True, True]]))[0, 0].item() == 1.0
    suffix = suffix_sum(x)
    assert (suffix[0, 0] - suffix[0, 1]).item() == 0.0


def test_at_next_state_reads_the_next_state_and_zero_past_the_last():
    is_state = torch.tensor([[True, False, True, False]])
    assert at_next_state(row(1, 2, 3, 4), is_state).tolist() == [[3, 3, 0, 0]]


def test_first_state_is_one_per_row_or_none():
    is_state = torch.tensor([[False, True, True], [True, True, False], [False, False, False]])
    assert first_state(is_state).tolist() == [[False, True, False], [True, False, False], [False, False, False]]


def test_afterstates_stand_between_a_turn_and_its_observation_and_not_at_padding():
    # Tokens p A A o o A o # #: p prompt, A action, o observation, # padding. State t ends with token t, so the states
    # after the turns are 2 (before the first o) and 5 (before the last o). Without the last o, 5 is before padding.
    is_token = torch.tensor([[True] * 7 + [False] * 2])
    is_action = torch.tensor([[False, True, True, False, False, True, False, False, False]])[:, 1:]
    assert afterstates(is_action, is_token).nonzero().tolist() == [[0, 2], [0, 5]]
    is_token[0, 6] = False
    assert afterstates(is_action, is_token).nonzero().tolist() == [[0, 2]]
