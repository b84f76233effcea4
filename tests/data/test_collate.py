"""Padding, and the one shift from token index to state index."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from posttrain.data.collate import EncodedDataset, StateLevel, collate
from posttrain.schema import EncodedTrajectory, TokenBatch

# Two prompt tokens, then a step of two actions and a step of one.
LONG = EncodedTrajectory(
    row_id=3,
    input_ids=(10, 11, 12, 13, 14),
    is_action=(False, False, True, True, True),
    is_step_start=(False, False, True, False, True),
    reward=(0.0, 0.0, 0.0, 0.5, 1.0),
)
SHORT = EncodedTrajectory(
    row_id=8, input_ids=(20, 21), is_action=(False, True), is_step_start=(False, True), reward=(0.0, -1.0)
)


def batch(rows, states: StateLevel = StateLevel.TOKEN) -> TokenBatch:
    return TokenBatch(**collate(rows, pad_id=9, states=states))


def test_state_t_holds_what_concerns_token_t_plus_1():
    b = batch([LONG, SHORT])
    assert_close(b.input_ids, torch.tensor([[10, 11, 12, 13, 14], [20, 21, 9, 9, 9]]))
    assert_close(b.is_token, torch.tensor([[True] * 5, [True, True, False, False, False]]))
    assert_close(b.is_action, torch.tensor([[False, True, True, True], [True, False, False, False]]))
    assert_close(b.reward, torch.tensor([[0.0, 0.0, 0.5, 1.0], [-1.0, 0.0, 0.0, 0.0]]))
    assert_close(b.row_id, torch.tensor([3, 8]))


def test_token_level_states_equal_actions():
    b = batch([LONG, SHORT])
    assert_close(b.is_state, b.is_action)


def test_step_level_states_lie_just_before_the_first_action_of_a_step():
    # Steps open at tokens 2 and 4, so their states are the prefixes that end at tokens 1 and 3.
    assert_close(batch([LONG], StateLevel.STEP).is_state, torch.tensor([[False, True, False, True]]))


def test_padding_changes_no_value_of_a_row():
    alone, padded = batch([SHORT]), batch([SHORT, LONG])
    for name in ("is_action", "is_state", "reward"):
        assert_close(getattr(padded, name)[:1, :1], getattr(alone, name))
        assert not getattr(padded, name)[0, 1:].any()


def test_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        collate([], pad_id=0, states=StateLevel.TOKEN)


def test_dataset_keeps_the_order_of_the_rows():
    dataset = EncodedDataset([LONG, SHORT])
    assert [dataset[i].row_id for i in range(len(dataset))] == [3, 8]


def test_dataset_without_rows_is_refused():
    with pytest.raises(ValueError, match="no rows to train on, needed at least one"):
        EncodedDataset([])


@pytest.mark.parametrize("name", ["is_action", "is_step_start"])
@pytest.mark.parametrize("mask", [(False, False), (True, False)])  # the first token follows no state
def test_row_whose_states_are_all_masked_is_refused(name, mask):
    masked = dataclasses.replace(SHORT, **{name: mask})
    with pytest.raises(ValueError, match=f"row 8: {name} is False on every token after the first.*masked or cut off"):
        EncodedDataset([LONG, masked])
