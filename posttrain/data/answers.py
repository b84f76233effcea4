"""trl's text rows as trajectories, so that SFT and DPO encode every answer the way it is sampled."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.fields import RowError
from posttrain.schema import FinishReason, Message, TrajectoryRow

TRAJECTORY_MARKS = ("task_id", "finish_reason", "messages")  # columns that only trajectory rows have


def is_trajectory(obj: object) -> bool:
    """Whether a JSON object is meant as a trajectory row rather than as one of trl's."""
    return isinstance(obj, Mapping) and any(obj.get(column) is not None for column in TRAJECTORY_MARKS)


def as_trajectory(
    prompt: str | tuple[Message, ...],
    completion: str | tuple[Message, ...],
    *,
    where: str,
    task_id: str,
    reward: float | None,
) -> TrajectoryRow:
    """An answer given as text or as one assistant message, as a trajectory without recorded tokens.

    Raises RowError for a completion of several messages: only a trajectory row can say which of them are actions.
    """
    if not isinstance(completion, str):
        if len(completion) != 1 or completion[0].role != "assistant":
            roles = ", ".join(message.role for message in completion)
            fault = "expected text or one assistant turn; for several, use a trajectory row with `messages`"
            raise RowError([f"{where}: completion: holds the turns {roles}; {fault}"])
        completion = completion[0].content
    return TrajectoryRow(
        where=where,
        task_id=task_id,
        prompt=prompt,
        completion=completion,
        input_ids=None,
        action_spans=(),
        reward=reward,
        step_rewards=(),
        finish_reason=FinishReason.STOP,
        behavior_logp=None,
        ref_logp=None,
    )
