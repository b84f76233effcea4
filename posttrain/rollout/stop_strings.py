"""Stop strings, found on the decoded tail of a completion: a stop string may span tokens or end inside one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what a tokenizer prints for bytes that are not yet a character
_BYTES_PER_CHARACTER = 4  # UTF-8; a token holds at least one byte
_N_KEPT = 64  # sets of stop strings that a vocabulary remembers; each holds V bytes


class StopStrings:
    """Which token ends a completion, and by which of the stop strings.

    Decoding every row after every token would cost more than a small model does. A stop string can only be completed
    by a token that prints its last character, so `may_end` [V] tells which tokens are worth decoding for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], *, may_end: Tensor) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.may_end = may_end
        # The slack keeps what a decoder does to the first token of a text (strip its space) out of the match.
        self._n_tail = _BYTES_PER_CHARACTER * (max(map(len, stop), default=0) + 1)

    def ending(self, token_ids: Sequence[int]) -> str | None:
        """The stop string that these tokens, the completion so far, contain; the one that ends first."""
        text = _decode(self.tokenizer, token_ids[-self._n_tail :])
        ends = {stop: text.find(stop) + len(stop) for stop in self.stop if stop in text}
        return min(ends, key=ends.__getitem__, default=None)


class StopVocabulary:
    """The StopStrings of one tokenizer. Its tokens are decoded once, for the first stop strings that come."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, n_vocab: int, device: torch.device | str) -> None:
        self.tokenizer = tokenizer
        self.n_vocab = n_vocab
        self.device = device
        self.of = lru_cache(maxsize=_N_KEPT)(self._of)

    def decode(self) -> None:
        """Decode the vocabulary now, a matter of seconds for a large one, so that no request waits for it."""
        _ = self._tokens_by_character

    def _of(self, stop: tuple[str, ...]) -> StopStrings | None:
        """None for no stop strings."""
        if not stop:
            return None
        return StopStrings(self.tokenizer, stop, may_end=self._may_print({text[-1] for text in stop}).to(self.device))

    def _may_print(self, characters: Collection[str]) -> Tensor:
        """Of each token, [V] bool, whether its text may hold one of the characters."""
        if " " in characters:
            # A space may come from the decoder, which joins or strips: no token shows by itself that it prints one.
            return torch.ones(self.n_vocab, dtype=torch.bool)
        may_print = torch.zeros(self.n_vocab, dtype=torch.bool)
        for character in (*characters, _REPLACEMENT):
            may_print[self._tokens_by_character.get(character, [])] = True
        return may_print

    @cached_property
    def _tokens_by_character(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for token_id in range(self.n_vocab):
            for character in set(_decode(self.tokenizer, [token_id])):
                found.setdefault(character, []).append(token_id)
        return found


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text with special tokens and spaces as they are, so that a special token can be a stop string."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not isinstance(text, str):
        raise TypeError(f"the tokenizer decoded a list of ids to {type(text).__name__}, needs str")
    return text
