"""Rows to tokens and masks, one row at a time and still indexed by token."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat import Span, encode_conversation, eos_id, render_ids
from posttrain.data.fields import RowError
from posttrain.data.steps import step_ends
from posttrain.schema import EncodedTrajectory, FinishReason, Message, TrajectoryRow


def encode_trajectory(
    row: TrajectoryRow, tokenizer: PreTrainedTokenizerBase, row_id: int, *, step_delimiters: Sequence[str]
) -> EncodedTrajectory:
    """Tokens, actions, step starts and rewards of a row.

    Recorded `input_ids` are used as they are. Otherwise prompt and completion are tokenised apart and joined, with EOS
    only where the policy chose to stop; a conversation goes through the chat template. The terminal reward falls on
    the last action, or on the observation after it where that is an afterstate, so that V there is what the turn was
    worth; a step's reward on the last action before its end.

    Raises RowError for a row without an action, with an action that has no token before it, with ids that the
    tokenizer does not have, with a prompt that its chat template renders otherwise, or cut and yet ending in EOS.
    """
    ids, spans = _tokens_and_spans(row, tokenizer)
    if not spans:
        raise RowError([f"{row.where}: completion: holds no token, expected at least one action"])
    if spans[0][0] == 0:
        raise RowError(
            [f"{row.where}: prompt: holds no token, expected at least one (BOS counts) before the first action"]
        )
    if row.finish_reason is FinishReason.LENGTH and ids[spans[-1][1] - 1] == eos_id(tokenizer):
        raise RowError(
            [
                f"{row.where}: finish_reason: is 'length', but the last action is the EOS; expected 'stop' if the "
                "policy chose it, or the answer without it if something appended it"
            ]
        )
    is_action, is_step_start = [False] * len(ids), [False] * len(ids)
    ends = step_ends(tokenizer, tuple(step_delimiters))
    for start, end in spans:
        is_action[start:end] = [True] * (end - start)
        is_step_start[start:end] = ends.starts(ids[start:end])
    return EncodedTrajectory(
        row_id=row_id,
        input_ids=tuple(ids),
        is_action=tuple(is_action),
        is_step_start=tuple(is_step_start),
        reward=_reward_by_token(row, is_action),
        is_afterstate=tuple(index in row.afterstates for index in range(len(ids))) if row.afterstates else (),
    )


def encode_prompt(prompt: str | tuple[Message, ...], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that the policy continues: the text with the tokenizer's own BOS, or the chat with an opened turn."""
    if isinstance(prompt, str):
        has_bos = tokenizer.bos_token is not None and prompt.startswith(str(tokenizer.bos_token))  # a rendered chat
        return list(tokenizer(prompt, add_special_tokens=not has_bos)["input_ids"])
    return render_ids(prompt, tokenizer, opens_turn=True)


def _tokens_and_spans(row: TrajectoryRow, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[Span]]:
    if row.input_ids is not None:
        _require_known_ids(row, tokenizer)
        _require_rendered_prompt(row, tokenizer)
        return list(row.input_ids), list(row.action_spans)
    if row.completion is None:
        if isinstance(row.prompt, str):
            raise RowError([f"{row.where}: completion: is missing, expected text after a text prompt"])
        _require_chat_template(row, tokenizer)
        return encode_conversation(row.prompt, tokenizer, finish_reason=row.finish_reason, where=row.where)
    if not isinstance(row.prompt, str):
        _require_chat_template(row, tokenizer)
    prompt_ids = encode_prompt(row.prompt, tokenizer)
    completion_ids = list(tokenizer(row.completion, add_special_tokens=False)["input_ids"])
    if row.finish_reason is FinishReason.STOP:
        completion_ids.append(_eos(row, tokenizer))
    span = (len(prompt_ids), len(prompt_ids) + len(completion_ids))
    return prompt_ids + completion_ids, [span] if completion_ids else []


def _reward_by_token(row: TrajectoryRow, is_action: Sequence[bool]) -> tuple[float, ...]:
    reward = [0.0] * len(is_action)
    if row.reward is not None:
        reward[max(_last_action(is_action, len(is_action)), *row.afterstates, 0)] += row.reward
    for step in row.step_rewards:
        reward[_last_action(is_action, step.end)] += step.reward
    return tuple(reward)


def _last_action(is_action: Sequence[bool], end: int) -> int:
    return max(index for index in range(min(end, len(is_action))) if is_action[index])


def _require_known_ids(row: TrajectoryRow, tokenizer: PreTrainedTokenizerBase) -> None:
    largest = max(row.input_ids or ())
    if largest >= len(tokenizer):
        raise RowError(
            [
                f"{row.where}: input_ids: got {largest}, expected ids below {len(tokenizer)}, the tokenizer's size; "
                "was the row recorded with another tokenizer?"
            ]
        )


def _require_rendered_prompt(row: TrajectoryRow, tokenizer: PreTrainedTokenizerBase) -> None:
    """Recorded ids beside a conversation start as the tokenizer renders it, to the first answer or as a whole.

    A tokenizer without a chat template renders nothing, and recorded ids need none: they pass.
    """
    if isinstance(row.prompt, str) or not tokenizer.chat_template:
        return
    recorded = list((row.input_ids or ())[: row.action_spans[0][0]])
    n_before_answer = next((i for i, m in enumerate(row.prompt) if m.role == "assistant"), len(row.prompt))
    if any(
        render_ids(row.prompt[:n], tokenizer, opens_turn=True) == recorded for n in (n_before_answer, len(row.prompt))
    ):
        return
    raise RowError(
        [
            f"{row.where}: prompt: the tokenizer's chat template renders the messages as other tokens than the "
            f"{len(recorded)} of input_ids before the first action; was the row made with another chat template? "
            "Give the tokenizer that one; if the sampler added something (tools), record prompt as the rendered text"
        ]
    )


def _require_chat_template(row: TrajectoryRow, tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise RowError(
            [f"{row.where}: prompt: is a conversation, but the tokenizer has no chat template; use text, or set one"]
        )


def _eos(row: TrajectoryRow, tokenizer: PreTrainedTokenizerBase) -> int:
    eos = eos_id(tokenizer)
    if eos is None:
        raise RowError([f"{row.where}: finish_reason: is 'stop', but the tokenizer has no EOS to end the answer with"])
    return eos
