"""Afterstates in rows: parsing, and where states and the reward of an episode come to stand."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from posttrain.data.collate import StateLevel, collate
from posttrain.data.encode import encode_trajectory
from posttrain.data.rows import RowError, parse_trajectory, trajectory_to_json
from posttrain.schema import TokenBatch

# Tokens: prompt 1 1, turn 2 2, observation 3 3, turn 4, closing observation 5 5.
EPISODE = {
    "task_id": "t",
    "prompt": "p",
    "input_ids": [1, 1, 2, 2, 3, 3, 4, 5, 5],
    "action_spans": [[2, 4], [6, 7]],
    "afterstates": [4, 7],
    "reward": 1.0,
    "finish_reason": "stop",
}


def batch_of(row: dict, tokenizer, states: StateLevel = StateLevel.TOKEN) -> TokenBatch:
    encoded = encode_trajectory(parse_trajectory(row, "f.jsonl:1"), tokenizer, 0, step_delimiters=())
    return TokenBatch(**collate([encoded], pad_id=0, states=states))


@pytest.mark.parametrize("states", [StateLevel.TOKEN, StateLevel.RESPONSE])
def test_value_learns_in_afterstates_and_the_reward_stands_in_the_last_one(char_tokenizer, states: StateLevel) -> None:
    # Token i is chosen in state i - 1: actions in states 1, 2 and 5, afterstates 3 and 6.
    batch = batch_of(EPISODE, char_tokenizer, states)
    assert_close(batch.is_action, torch.tensor([[False, True, True, False, False, True, False, False]]))
    assert_close(batch.is_state, torch.tensor([[False, True, True, True, False, True, True, False]]))
    assert_close(batch.reward, torch.tensor([[0.0, 0, 0, 0, 0, 0, 1, 0]]))


def test_step_level_keeps_step_starts_and_adds_afterstates(char_tokenizer) -> None:
    # Without a delimiter each turn is one step: starts in states 1 and 5.
    batch = batch_of(EPISODE, char_tokenizer, StateLevel.STEP)
    assert_close(batch.is_state, torch.tensor([[False, True, False, True, False, True, True, False]]))


def test_row_without_afterstates_has_its_reward_on_the_last_action(char_tokenizer) -> None:
    batch = batch_of({name: value for name, value in EPISODE.items() if name != "afterstates"}, char_tokenizer)
    assert_close(batch.is_state, batch.is_action)
    assert_close(batch.reward, torch.tensor([[0.0, 0, 0, 0, 0, 1, 0, 0]]))


def test_last_turn_that_ends_the_row_takes_the_reward_itself(char_tokenizer) -> None:
    row = {**EPISODE, "input_ids": [1, 1, 2, 2, 3, 3, 4], "afterstates": [4]}
    assert_close(batch_of(row, char_tokenizer).reward, torch.tensor([[0.0, 0, 0, 0, 0, 1]]))


def test_afterstates_are_written_as_they_were_read() -> None:
    row = parse_trajectory(EPISODE, "f.jsonl:1")
    assert row.afterstates == (4, 7)
    assert trajectory_to_json(row) == EPISODE


@pytest.mark.parametrize("wrong", [[3], [5], [7, 4], [4, 4], [9], [True]])
def test_index_that_follows_no_turn_is_refused_with_those_that_do(wrong: list) -> None:
    with pytest.raises(RowError) as error:
        parse_trajectory({**EPISODE, "afterstates": wrong}, "f.jsonl:1")
    (fault,) = error.value.faults
    assert fault.startswith("f.jsonl:1: afterstates: got")
    assert fault.endswith("of [4, 7]")
