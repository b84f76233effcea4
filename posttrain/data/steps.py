"""Where reasoning steps begin among the tokens that the policy chose.

A step ends with the token that completes a delimiter, so the delimiter belongs to the step that it ends, and a token
that holds a delimiter and more text belongs to it whole. A sampler that stops at the same strings cuts at the same
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # what decoding gives for a token that holds part of a character
SLACK_TOKENS = 4  # tokens without a character of their own that may stand inside a delimiter


class StepEnds:
    """Finds the tokens that complete a delimiter; remembers which token ids never can."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, delimiters: tuple[str, ...]) -> None:
        if "" in delimiters:
            raise ValueError("a step delimiter is empty text, needs at least one character")
        self._tokenizer = tokenizer
        self._delimiters = delimiters
        self._last_chars = {delimiter[-1] for delimiter in delimiters}
        self._window = max((len(delimiter.encode()) for delimiter in delimiters), default=0) + SLACK_TOKENS
        self._can_end: dict[int, bool] = {}

    def starts(self, ids: Sequence[int]) -> list[bool]:
        """For the actions of one turn, [n] bool: this action opens a step; the first always does."""
        is_start = [False] * len(ids)
        start = 0
        for index, token in enumerate(ids):
            is_start[index] = index == start
            if self._may_end(token) and self._ends_step(ids[max(start, index + 1 - self._window) : index + 1]):
                start = index + 1
        return is_start

    def _ends_step(self, tail: Sequence[int]) -> bool:
        text = decode_exactly(self._tokenizer, tail)
        return any(delimiter in text for delimiter in self._delimiters)

    def _may_end(self, token: int) -> bool:
        if token not in self._can_end:
            # Decoded twice in a row, since some tokenizers drop the space that opens a text.
            text = self._tokenizer.decode(
                [token, token], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            self._can_end[token] = REPLACEMENT in text or any(char in text for char in self._last_chars)
        return self._can_end[token]


def decode_exactly(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of the tokens, special ones and spaces as they are."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=8)
def step_ends(tokenizer: PreTrainedTokenizerBase, delimiters: tuple[str, ...]) -> StepEnds:
    """The StepEnds of a tokenizer and its delimiters, kept because its memory grows with use."""
    return StepEnds(tokenizer, delimiters)
