"""Encoded rows to one right-padded batch. The shift from token index to state index happens here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor
from torch.utils.data import Dataset

from posttrain.schema import EncodedTrajectory


class StateLevel(StrEnum):
    """On which states a loss is taken."""

    TOKEN = "token"  # before each action token
    STEP = "step"  # before the first action token of each step
    RESPONSE = "response"  # before each action token, for a value; an objective takes the first for the policy
    ONE_STEP = "one_step"  # before each action token; an objective compares each state with the next one


class EncodedDataset(Dataset[EncodedTrajectory]):
    """Encoded rows behind torch's Dataset interface, in the order in which they were read.

    Raises ValueError for no rows, and for a row that has no state at one of the StateLevels.
    """

    def __init__(self, rows: Sequence[EncodedTrajectory]) -> None:
        self.rows = tuple(rows)
        if not self.rows:
            raise ValueError("there are no rows to train on, needed at least one: were all of them filtered out?")
        for row in self.rows:
            _require_states(row)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedTrajectory:
        return self.rows[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, prompt included."""
        return [len(row.input_ids) for row in self.rows]


def collate(encoded: Sequence[EncodedTrajectory], *, pad_id: int, states: StateLevel) -> dict[str, Tensor]:
    """The fields of a TokenBatch: state t is the prefix ids[:, : t + 1], its action the token ids[:, t + 1]."""
    if not encoded:
        raise ValueError("a batch needs at least one row, got none")
    is_state_token = [_is_state(row, states) for row in encoded]
    return {
        "input_ids": _padded([row.input_ids for row in encoded], pad_id, torch.int64),
        "is_token": _padded([(True,) * len(row.input_ids) for row in encoded], False, torch.bool),
        "is_action": _padded([row.is_action for row in encoded], False, torch.bool)[:, 1:],
        "is_state": _padded(is_state_token, False, torch.bool)[:, 1:],
        "reward": _padded([row.reward for row in encoded], 0.0, torch.float32)[:, 1:],
        "row_id": torch.tensor([row.row_id for row in encoded], dtype=torch.int64),
    }


def _is_state(row: EncodedTrajectory, states: StateLevel) -> tuple[bool, ...]:
    """By token: the states of the level, and the afterstates of a row that has them."""
    chosen = row.is_step_start if states is StateLevel.STEP else row.is_action
    if not row.is_afterstate:
        return chosen
    return tuple(is_chosen or is_after for is_chosen, is_after in zip(chosen, row.is_afterstate, strict=True))


def _require_states(row: EncodedTrajectory) -> None:
    for name, mask in (("is_action", row.is_action), ("is_step_start", row.is_step_start)):
        if not any(mask[1:]):  # the first token follows no state
            raise ValueError(
                f"row {row.row_id}: {name} is False on every token after the first, needed at least one True: the row "
                "would count in the mean and teach nothing. Was its answer masked or cut off?"
            )


def _padded(rows: Sequence[Sequence[int | bool | float]], fill: int | bool | float, dtype: torch.dtype) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=dtype)
