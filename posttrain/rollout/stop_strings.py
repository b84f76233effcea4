"""Stop strings, found on the decoded tail of a completion: a stop string may span tokens or end inside one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what a tokenizer prints for bytes that are not yet a character
_BYTES_PER_CHARACTER = 4  # UTF-8; a token holds at least one byte


class StopStrings:
    """Which token ends a completion, and by which of the stop strings.

    Decoding every row after every token would cost more than a small model does. A stop string can only be completed
    by a token that prints its last character, so `may_end` [V] tells which tokens are worth decoding for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], *, n_vocab: int) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.may_end = self._tokens_that_may_end(n_vocab)
        # The slack keeps what a decoder does to the first token of a text (strip its space) out of the match.
        self._n_tail = _BYTES_PER_CHARACTER * (max(map(len, stop), default=0) + 1)

    def ending(self, token_ids: Sequence[int]) -> str | None:
        """The stop string that these tokens, the completion so far, contain; the one that ends first."""
        text = _decode(self.tokenizer, token_ids[-self._n_tail :])
        ends = {stop: text.find(stop) + len(stop) for stop in self.stop if stop in text}
        return min(ends, key=ends.__getitem__, default=None)

    def _tokens_that_may_end(self, n_vocab: int) -> Tensor:
        last = {stop[-1] for stop in self.stop}
        if not last:
            return torch.zeros(n_vocab, dtype=torch.bool)
        if " " in last:
            # A space may come from the decoder, which joins or strips: no token shows by itself that it prints one.
            return torch.ones(n_vocab, dtype=torch.bool)
        pieces = (_decode(self.tokenizer, [token]) for token in range(n_vocab))
        return torch.tensor([_REPLACEMENT in piece or not last.isdisjoint(piece) for piece in pieces])


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text with special tokens and spaces as they are, so that a special token can be a stop string."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not isinstance(text, str):
        raise TypeError(f"the tokenizer decoded a list of ids to {type(text).__name__}, needs str")
    return text
