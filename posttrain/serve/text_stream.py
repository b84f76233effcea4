"""Tokens to text while they come: only what no later token can change or take back."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"  # what a tokenizer prints for bytes that are not yet a character


class TextStream:
    """The text of one completion, piece by piece; the pieces joined are `completion_text` of its tokens.

    A decoder may treat the first token of a text in its own way (strip its space), so a new token is decoded behind
    those of the piece before it. The beginning of a stop string is held back until it is known not to be one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._context = 0  # where the tokens begin that new ones are decoded behind
        self._read = 0  # tokens whose text has been taken
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token_id)
        self._take(is_end=False)
        return self._release(_n_held(self._held, self._stop))

    def end(self, stop_string: str | None) -> str:
        """The rest, up to the stop string that ended the completion."""
        self._take(is_end=True)
        if stop_string is not None and stop_string in self._held:
            self._held = self._held[: self._held.index(stop_string)]
        return self._release(0)

    def _take(self, *, is_end: bool) -> None:
        before = decode(self._tokenizer, self._ids[self._context : self._read])
        after = decode(self._tokenizer, self._ids[self._context :])
        if is_end or (len(after) > len(before) and not after.endswith(_UNFINISHED)):
            self._held += after[len(before) :]
            self._context, self._read = self._read, len(self._ids)

    def _release(self, n_held: int) -> str:
        cut = len(self._held) - n_held
        released, self._held = self._held[:cut], self._held[cut:]
        return released


def completion_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop_string: str | None) -> str:
    """The text of a whole completion, without special tokens and up to the stop string that ended it."""
    text = decode(tokenizer, token_ids)
    return text if stop_string is None or stop_string not in text else text[: text.index(stop_string)]


def certain_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """The text of these tokens that stays as it is whatever follows: without a character that is not yet whole."""
    return decode(tokenizer, token_ids).rstrip(_UNFINISHED)


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _n_held(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of `text` that may begin a stop string, or all from where one stands whole."""
    if found := [text.index(s) for s in stop if s in text]:
        return len(text) - min(found)
    longest = max(map(len, stop), default=1) - 1
    ends = (n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stop))
    return next(ends, 0)
