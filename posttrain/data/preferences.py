"""Between preferences and trajectories: labels become rewards, and rewards become pairs."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from posttrain.data.fields import Fields, RowError
from posttrain.data.rows import require_same_form
from posttrain.schema import FinishReason, Message, PreferenceRow, TrajectoryRow


def parse_unpaired_preference(obj: object, where: str) -> TrajectoryRow:
    """Parse TRL's unpaired preference row (prompt, completion, label) as a trajectory of reward 1.0 or 0.0.

    The format has neither a task id nor a finish reason: rows with the same prompt share a task id made from its hash,
    and every completion counts as ended by the policy. Raises RowError with all faults.
    """
    fields = Fields(obj, where)
    prompt, completion = fields.text_or_messages("prompt"), fields.text_or_messages("completion")
    is_good = fields.flag("label")
    require_same_form(fields, ("prompt", "completion"), (prompt, completion))
    text = completion if isinstance(completion, str) else _only_answer(fields, completion)
    fields.raise_faults()
    return TrajectoryRow(
        where=where,
        task_id=f"prompt-{hashlib.sha256(repr(prompt).encode()).hexdigest()[:16]}",
        prompt=prompt,
        completion=text,
        input_ids=None,
        action_spans=(),
        reward=1.0 if is_good else 0.0,
        step_rewards=(),
        finish_reason=FinishReason.STOP,
        behavior_logp=None,
        ref_logp=None,
    )


def preference_pairs(rows: Sequence[TrajectoryRow], *, max_pairs: int, rng: random.Random) -> list[PreferenceRow]:
    """The texts of `trajectory_pairs`, as TRL's preference rows."""
    return [_pair(better, worse) for better, worse in trajectory_pairs(rows, max_pairs=max_pairs, rng=rng)]


def trajectory_pairs(
    rows: Sequence[TrajectoryRow], *, max_pairs: int, rng: random.Random
) -> list[tuple[TrajectoryRow, TrajectoryRow]]:
    """At most `max_pairs` pairs per task, drawn without replacement from all (higher reward, lower reward) pairs.

    The paper's DPO baseline (arXiv 2412.16145, A.1) with binary rewards: the grid of right and wrong answers, 6, 10 or
    5 pairs per question. Equal answers are never paired. Tasks keep the order of their first row.
    """
    by_task: dict[str, list[TrajectoryRow]] = {}
    for row in rows:
        by_task.setdefault(row.task_id, []).append(row)
    return [pair for task in by_task.values() for pair in _task_pairs(task, max_pairs, rng)]


def total_reward(row: TrajectoryRow) -> float:
    """Sum of the rewards along the row, in reward units."""
    return sum(step.reward for step in row.step_rewards) if row.reward is None else row.reward


def _task_pairs(
    task: Sequence[TrajectoryRow], max_pairs: int, rng: random.Random
) -> list[tuple[TrajectoryRow, TrajectoryRow]]:
    grid = [
        (better, worse)
        for better in task
        for worse in task
        if total_reward(better) > total_reward(worse) and _answer(better) != _answer(worse)
    ]
    return rng.sample(grid, min(max_pairs, len(grid)))


def _answer(row: TrajectoryRow) -> object:
    """The text, or the tokens of a row that holds nothing else."""
    return row.input_ids if row.completion is None else row.completion


def _pair(better: TrajectoryRow, worse: TrajectoryRow) -> PreferenceRow:
    if better.prompt != worse.prompt:
        fault = (
            f"has the task_id {better.task_id!r} of {better.where}, but another prompt; expected one prompt per task"
        )
        raise RowError([f"{worse.where}: prompt: {fault}"])
    return PreferenceRow(
        where=f"{better.where}>{worse.where}",
        prompt=better.prompt,
        chosen=_completion(better),
        rejected=_completion(worse),
    )


def _completion(row: TrajectoryRow) -> str | tuple[Message, ...]:
    if row.completion is None:
        raise RowError(
            [f"{row.where}: completion: is missing, expected text: a pair is made of texts, not of token ids"]
        )
    return row.completion if isinstance(row.prompt, str) else (Message("assistant", row.completion),)


def _only_answer(fields: Fields, completion: Sequence[Message]) -> str:
    if len(completion) == 1 and completion[0].role == "assistant":
        return completion[0].content
    if fields.is_sound("completion"):
        roles = ", ".join(message.role for message in completion)
        fields.fault("completion", f"holds the turns {roles}; expected one assistant turn, the rest belongs in prompt")
    return ""
