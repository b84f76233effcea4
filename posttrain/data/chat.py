"""Conversations to tokens: which of them the assistant chose."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from posttrain.data.fields import RowError
from posttrain.schema import FinishReason, Message

Span = tuple[int, int]


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
        return _without_closing(ids, spans, tokenizer.eos_token_id)
    return ids, spans


def has_generation_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    template = tokenizer.get_chat_template()
    return "{% generation" in template or "{%- generation" in template


def _marked_spans(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[Span]]:
    encoded = tokenizer.apply_chat_template(
        template_messages(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    is_action = [bool(mark) for mark in encoded["assistant_masks"]]
    return list(encoded["input_ids"]), runs(is_action)


def _prefix_spans(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[Span]]:
    whole = _render(messages, tokenizer, opens_turn=False)
    spans = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _render(messages[:index], tokenizer, opens_turn=True)
        after = _render(messages[: index + 1], tokenizer, opens_turn=False)
        if after[: len(before)] != before or whole[: len(after)] != after:
            raise RowError(
                [
                    f"{where}: prompt[{index}]: the chat template renders the earlier turns differently once this "
                    "turn is there, so its tokens cannot be told apart; use a template with {% generation %} marks, "
                    "or record input_ids with action_spans"
                ]
            )
        end = _after_last(tokenizer.eos_token_id, after, len(before))
        if end > len(before):
            spans.append((len(before), end))
    return whole, spans


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, opens_turn: bool) -> list[int]:
    if not messages:
        return []
    rendered = tokenizer.apply_chat_template(
        template_messages(messages), tokenize=True, return_dict=True, add_generation_prompt=opens_turn
    )
    return list(rendered["input_ids"])


def _after_last(token: int | None, ids: Sequence[int], start: int) -> int:
    """One past the last `token` in ids[start:]; the whole length where there is none."""
    positions = [index for index in range(start, len(ids)) if ids[index] == token]
    return positions[-1] + 1 if positions else len(ids)


def _without_closing(ids: list[int], spans: list[Span], eos: int | None) -> tuple[list[int], list[Span]]:
    """Cut what the template wrote to close a turn that the token budget had cut: the policy never chose to stop."""
    start, end = spans[-1]
    closing = [index for index in range(start, len(ids)) if ids[index] == eos]
    if not closing:
        return ids[:end], spans
    cut = closing[-1]
    kept = [(start, min(end, cut))] if cut > start else []
    return ids[:cut], spans[:-1] + kept


def runs(is_action: Sequence[bool]) -> list[Span]:
    """The half-open spans of consecutive True."""
    edges = [i for i in range(len(is_action) + 1) if _at(is_action, i) != _at(is_action, i - 1)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _at(flags: Sequence[bool], index: int) -> bool:
    return 0 <= index < len(flags) and flags[index]
