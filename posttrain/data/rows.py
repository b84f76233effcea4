"""The row types at the edge: a JSON object in, a typed row of posttrain.schema out, or a RowError with every fault.

Trajectory and problem rows are this library's own format, so an unknown column is a fault. Completion and preference
rows are TRL's, and published sets carry further columns: those are ignored, as TRL ignores them.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.fields import Fields, RowError, are_plain_ints, finite_floats, shown
from posttrain.schema import (
    GRADER_NAMES,
    CompletionRow,
    FinishReason,
    Message,
    PreferenceRow,
    Problem,
    StepReward,
    TrajectoryRow,
)

__all__ = [
    "RowError",
    "parse_completion",
    "parse_preference",
    "parse_problem",
    "parse_trajectory",
    "problem_to_json",
    "trajectory_to_json",
]

TRAJECTORY_COLUMNS = (
    "task_id",
    "prompt",
    "messages",
    "completion",
    "input_ids",
    "action_spans",
    "reward",
    "step_rewards",
    "finish_reason",
    "behavior_logp",
    "ref_logp",
    "afterstates",
)
PROBLEM_COLUMNS = ("task_id", "prompt", "answer", "grader", "entry", "tags")
FINISH_REASON_MEANING = '"stop" (the policy ended the answer) or "length" (the token budget cut it)'
STEP_REWARDS_MEANING = "a list of {start, end, reward}"
LOGP_SLACK = 1e-4  # nats above 0 that rounding in a sampler may produce


def parse_trajectory(obj: object, where: str) -> TrajectoryRow:
    """Parse a trajectory: recorded `input_ids` with `action_spans`, or `prompt` and `completion`, or a conversation.

    `messages` is an alias of a `prompt` that is a conversation whose assistant turns are the actions.
    Raises RowError with all faults of the row.
    """
    fields = Fields(obj, where)
    fields.refuse_unknown(TRAJECTORY_COLUMNS)
    prompt = _prompt_or_messages(fields)
    input_ids = _input_ids(fields)
    spans = _action_spans(fields, n_tokens=len(input_ids))
    n_actions = sum(end - start for start, end in spans)
    row = TrajectoryRow(
        where=where,
        task_id=fields.text("task_id", "text that is the same for all answers to one problem"),
        prompt=prompt,
        completion=fields.optional_text("completion"),
        input_ids=input_ids or None,
        action_spans=spans,
        reward=_terminal_reward(fields),
        step_rewards=_step_rewards(fields, spans),
        finish_reason=fields.choice("finish_reason", FinishReason, FINISH_REASON_MEANING),
        behavior_logp=_logps(fields, "behavior_logp", n_actions),
        ref_logp=_logps(fields, "ref_logp", n_actions),
        afterstates=_afterstates(fields, spans, n_tokens=len(input_ids)),
    )
    _require_actions(fields, row)
    fields.raise_faults()
    return row


def parse_completion(obj: object, where: str) -> CompletionRow:
    """Parse TRL's prompt/completion row: both text, or both lists of messages."""
    fields = Fields(obj, where)
    row = CompletionRow(where, fields.text_or_messages("prompt"), fields.text_or_messages("completion"))
    require_same_form(fields, ("prompt", "completion"), (row.prompt, row.completion))
    fields.raise_faults()
    return row


def parse_preference(obj: object, where: str) -> PreferenceRow:
    """Parse TRL's preference row with an explicit prompt: all three text, or all three lists of messages."""
    fields = Fields(obj, where)
    columns = ("prompt", "chosen", "rejected")
    prompt, chosen, rejected = (fields.text_or_messages(name) for name in columns)
    require_same_form(fields, columns, (prompt, chosen, rejected))
    fields.raise_faults()
    return PreferenceRow(where, prompt, chosen, rejected)


def parse_problem(obj: object, where: str) -> Problem:
    """Parse a question with its gold answer and the name of its grader."""
    fields = Fields(obj, where)
    fields.refuse_unknown(PROBLEM_COLUMNS)
    expected = ", ".join(f'"{name}"' for name in GRADER_NAMES) + ', "reasoning_gym:<dataset>" or "picture:<folder>"'
    problem = Problem(
        where=where,
        task_id=fields.text("task_id"),
        prompt=fields.text("prompt"),
        answer=fields.text("answer"),
        grader=fields.text("grader", expected),
        entry=fields.optional_text("entry"),
        tags=fields.text_pairs("tags"),
    )
    if fields.is_sound("grader"):
        kind, _, rest = problem.grader.partition(":")
        if problem.grader not in GRADER_NAMES and not (kind in ("reasoning_gym", "picture") and rest):
            fields.fault("grader", f"got {problem.grader!r}, expected {expected}")
        elif kind == "reasoning_gym" and problem.entry is None:
            fields.fault(
                "entry", f"is missing, expected the JSON of the entry that grader {problem.grader!r} verifies"
            )
    fields.raise_faults()
    return problem


def trajectory_to_json(row: TrajectoryRow) -> dict[str, object]:
    """The JSON object that parse_trajectory reads back to an equal row (`where` is the reader's)."""
    columns: dict[str, object] = {
        "task_id": row.task_id,
        "prompt": _prompt_to_json(row.prompt),
        "completion": row.completion,
        "input_ids": None if row.input_ids is None else list(row.input_ids),
        "action_spans": [list(span) for span in row.action_spans] or None,
        "reward": row.reward,
        "step_rewards": [{"start": s.start, "end": s.end, "reward": s.reward} for s in row.step_rewards] or None,
        "finish_reason": row.finish_reason.value,
        "behavior_logp": None if row.behavior_logp is None else list(row.behavior_logp),
        "ref_logp": None if row.ref_logp is None else list(row.ref_logp),
        "afterstates": list(row.afterstates) or None,
    }
    return {name: value for name, value in columns.items() if value is not None}


def problem_to_json(problem: Problem) -> dict[str, object]:
    """The JSON object that parse_problem reads back to an equal problem."""
    columns = {name: getattr(problem, name) for name in PROBLEM_COLUMNS} | {"tags": dict(problem.tags) or None}
    return {name: value for name, value in columns.items() if value is not None}


def _prompt_to_json(prompt: str | tuple[Message, ...]) -> object:
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": message.content} for message in prompt]


def _prompt_or_messages(fields: Fields) -> str | tuple[Message, ...]:
    if not fields.has("messages"):
        return fields.text_or_messages("prompt")
    for rival in ("prompt", "completion"):
        if fields.has(rival):
            fields.fault("messages", f"came together with {rival}, expected a whole episode in one of them")
    prompt = fields.text_or_messages("messages")
    if isinstance(prompt, str) and fields.is_sound("messages"):
        fields.fault("messages", "got text, expected a list of {role, content}")
    return prompt


def _input_ids(fields: Fields) -> tuple[int, ...]:
    expected = "a list of at least two token ids"
    ids = fields.items("input_ids", expected)
    if not fields.is_sound("input_ids"):
        return ()
    if len(ids) < 2:
        fields.fault("input_ids", f"got {len(ids)} tokens, expected {expected} (a state and an action)")
        return ()
    if not are_plain_ints(ids) or min(ids) < 0:  # type: ignore[type-var]
        index = next(i for i, token in enumerate(ids) if type(token) is not int or token < 0)
        fields.fault("input_ids", f"got {shown(ids[index])} at index {index}, expected integers of 0 or more")
        return ()
    return tuple(ids)  # type: ignore[arg-type]


def _action_spans(fields: Fields, *, n_tokens: int) -> tuple[tuple[int, int], ...]:
    expected = "a list of [start, end] pairs, half-open, rising and apart"
    items = fields.items("action_spans", expected)
    if fields.has("input_ids") != bool(items):
        absent, present = ("action_spans", "input_ids") if fields.has("input_ids") else ("input_ids", "action_spans")
        fields.fault(absent, f"is missing, expected it because {present} is there")
    if not fields.is_sound("input_ids", "action_spans"):
        return ()
    previous_end = 1  # token 0 has no state before it, so it cannot have been chosen
    for index, span in enumerate(items):
        is_pair = isinstance(span, list) and len(span) == 2 and are_plain_ints(span)
        if not is_pair or not previous_end <= span[0] < span[1] <= n_tokens:  # type: ignore[index,operator]
            needs = f"{previous_end} <= start < end <= {n_tokens}"
            fields.fault("action_spans", f"got {shown(span)} at index {index}, expected [start, end] with {needs}")
            return ()
        previous_end = span[1]  # type: ignore[index]
    return tuple((span[0], span[1]) for span in items)  # type: ignore[index]


def _afterstates(fields: Fields, spans: Sequence[tuple[int, int]], *, n_tokens: int) -> tuple[int, ...]:
    expected = "rising indexes of first tokens after an action span"
    items = fields.items("afterstates", expected)
    if not fields.is_sound("afterstates", "input_ids", "action_spans"):
        return ()
    starts = {start for start, _ in spans}
    possible = [end for _, end in spans if end < n_tokens and end not in starts]
    if not are_plain_ints(items) or [index for index in possible if index in items] != list(items):
        fields.fault("afterstates", f"got {shown(items)}, expected {expected}: of {possible}")
        return ()
    return tuple(items)  # type: ignore[arg-type]


def _terminal_reward(fields: Fields) -> float | None:
    has_steps = bool(fields.items("step_rewards", STEP_REWARDS_MEANING))
    if has_steps and fields.has("reward"):
        fields.fault("reward", "came together with step_rewards, expected one of the two")
    is_unreadable = fields.has("step_rewards") and not fields.is_sound("step_rewards")
    return None if has_steps or is_unreadable else fields.number("reward")


def _step_rewards(fields: Fields, spans: Sequence[tuple[int, int]]) -> tuple[StepReward, ...]:
    items = fields.items("step_rewards", STEP_REWARDS_MEANING)
    if items and not fields.has("input_ids"):
        fields.fault("step_rewards", "came without input_ids, expected the tokens that start and end index")
    if not fields.is_sound("step_rewards", "input_ids", "action_spans"):
        return ()
    return tuple(step for index, item in enumerate(items) if (step := _step_reward(fields, index, item, spans)))


def _step_reward(fields: Fields, index: int, item: object, spans: Sequence[tuple[int, int]]) -> StepReward | None:
    columns = item if isinstance(item, dict) else {}
    start, end = columns.get("start"), columns.get("end")
    reward = finite_floats([columns.get("reward")])
    if type(start) is not int or type(end) is not int or reward is None or len(columns) != 3:
        fields.fault(
            "step_rewards",
            f"got {shown(item)} at index {index}, expected {{start, end, reward}}, two integers and a number",
        )
        return None
    step = StepReward(start, end, reward[0])
    if not any(max(start, first) < min(end, last) for first, last in spans):
        fields.fault("step_rewards", f"[{start}, {end}) at index {index} holds no action, expected one to reward")
        return None
    return step


def _logps(fields: Fields, name: str, n_actions: int) -> tuple[float, ...] | None:
    values = fields.items(name, "a list of numbers")
    if not fields.has(name):
        return None
    if not fields.has("input_ids"):
        fields.fault(name, "came without input_ids, expected the tokens that it scores")
    if not fields.is_sound(name, "input_ids", "action_spans"):
        return None
    if len(values) != n_actions:
        fields.fault(name, f"got {len(values)} numbers, expected {n_actions}, one per action token")
        return None
    logps = finite_floats(values)
    if logps is None or max(logps) > LOGP_SLACK:
        index = next(i for i, v in enumerate(values) if not (one := finite_floats([v])) or one[0] > LOGP_SLACK)
        fields.fault(
            name, f"got {shown(values[index])} at index {index}, expected a finite log-probability of at most 0"
        )
        return None
    return logps


def _require_actions(fields: Fields, row: TrajectoryRow) -> None:
    if fields.has("input_ids") or fields.has("completion"):
        return
    if isinstance(row.prompt, str):
        if fields.is_sound("prompt"):
            fields.fault("completion", "is missing, expected text (or input_ids with action_spans, or messages)")
    elif row.prompt and not any(message.role == "assistant" for message in row.prompt):
        fields.fault(
            "prompt", "has no assistant turn and no completion came, expected something that the policy chose"
        )


def require_same_form(fields: Fields, names: Sequence[str], values: Sequence[object]) -> None:
    """Note a fault unless the columns are all text or all messages."""
    if fields.is_sound(*names) and len({isinstance(value, str) for value in values}) > 1:
        forms = ", ".join(
            f"{n} is {'text' if isinstance(v, str) else 'messages'}" for n, v in zip(names, values, strict=True)
        )
        fields.fault(names[-1], f"{forms}; expected all text or all messages")
