"""Conversations to tokens: which of them the assistant chose."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from posttrain.data.fields import RowError
from posttrain.schema import FinishReason, Message

Span = tuple[int, int]


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the EOS token, or None where the tokenizer has none."""
    return cast(int | None, tokenizer.eos_token_id)


def template_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages in the form that chat templates take."""
    return [{"role": message.role, "content": message.content} for message in messages]


def encode_conversation(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, finish_reason: FinishReason, where: str
) -> tuple[list[int], list[Span]]:
    """Token ids of the whole conversation and the half-open spans that the assistant chose.

    The spans come from the template's own `{% generation %}` marks where it has them. Otherwise a turn is the
    difference between the rendered conversation with it and without it, up to and including its last EOS; both then
    have to agree on the tokens before the turn, or a RowError tells so.
    """
    if has_generation_marks(tokenizer):
        ids, spans = _marked_spans(messages, tokenizer)
    else:
        ids, spans = _prefix_spans(messages, tokenizer, where)
    if not spans:
        raise RowError(
            [f"{where}: prompt: the chat template marks no token as the assistant's, expected at least one"]
        )
    if finish_reason is FinishReason.LENGTH and messages[-1].role == "assistant":
        return _without_closing(ids, spans, eos_id(tokenizer), where)
    return ids, spans


def render_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, opens_turn: bool) -> list[int]:
    """Token ids of the rendered messages; with `opens_turn` up to where the assistant continues."""
    if not messages:
        return []
    return list(_render(messages, tokenizer, add_generation_prompt=opens_turn)["input_ids"])


def has_generation_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """The template tells itself which tokens the assistant chose."""
    return re.search(r"\{%-?\s*generation\b", tokenizer.get_chat_template()) is not None


def _marked_spans(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[Span]]:
    encoded = _render(messages, tokenizer, return_assistant_tokens_mask=True)
    is_action = [bool(mark) for mark in encoded["assistant_masks"]]
    return list(encoded["input_ids"]), runs(is_action)


def _prefix_spans(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[Span]]:
    eos = eos_id(tokenizer)
    whole = render_ids(messages, tokenizer, opens_turn=False)
    spans = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = render_ids(messages[:index], tokenizer, opens_turn=True)
        after = render_ids(messages[: index + 1], tokenizer, opens_turn=False)
        if after[: len(before)] != before or whole[: len(after)] != after:
            raise RowError(
                [
                    f"{where}: prompt[{index}]: the chat template renders the earlier turns differently once this "
                    "turn is there, so its tokens cannot be told apart; use a template with {% generation %} marks, "
                    "or record input_ids with action_spans"
                ]
            )
        end = _after_last(eos, after, len(before))
        if end > len(before):
            spans.append((len(before), end))
    return whole, spans


def _render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = False,
    return_assistant_tokens_mask: bool = False,
) -> Mapping[str, list[int]]:
    rendered = tokenizer.apply_chat_template(
        template_messages(messages),
        tokenize=True,
        return_dict=True,
        add_generation_prompt=add_generation_prompt,
        return_assistant_tokens_mask=return_assistant_tokens_mask,
    )
    return cast(Mapping[str, list[int]], rendered)


def _after_last(token: int | None, ids: Sequence[int], start: int) -> int:
    """One past the last `token` in ids[start:]; the whole length where there is none."""
    positions = [index for index in range(start, len(ids)) if ids[index] == token]
    return positions[-1] + 1 if positions else len(ids)


def _without_closing(ids: list[int], spans: list[Span], eos: int | None, where: str) -> tuple[list[int], list[Span]]:
    """Cut what the template wrote to close a turn that the token budget had cut: the policy never chose to stop."""
    start, end = spans[-1]
    closing = [index for index in range(start, len(ids)) if ids[index] == eos]
    if not closing:
        raise RowError(
            [
                f"{where}: finish_reason: is 'length', but the template closes turns without the tokenizer's EOS, "
                "so the cut turn cannot be told from its closing; make the end of a turn the EOS, or record input_ids"
            ]
        )
    cut = closing[-1]
    kept = [(start, min(end, cut))] if cut > start else []
    return ids[:cut], spans[:-1] + kept


def runs(is_action: Sequence[bool]) -> list[Span]:
    """The half-open spans of consecutive True."""
    edges = [i for i in range(len(is_action) + 1) if _at(is_action, i) != _at(is_action, i - 1)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _at(flags: Sequence[bool], index: int) -> bool:
    return 0 <= index < len(flags) and flags[index]
