"""A small tree of steps that is written out, so that every search below it can be enumerated."""

from __future__ import annotations

import itertools

from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason

PROMPT = (7, 7)
NEWLINE, EOS = 0, 1
STEP = SamplingParams(max_new_tokens=4, temperature=1.0, seed=0, stop=("\n",))
WHOLE = SamplingParams(max_new_tokens=12, temperature=1.0, seed=0)


class EveryChoice:
    """An engine whose n samples are the n choices of a written-out tree, in a fixed order.

    Two steps of one token plus newline are chosen from {2, 3, 4}; the third ends with EOS.
    """

    def sample(self, prompts, params, n, *, streams=None):
        return [[self._nth(tuple(prompt), i, bool(params.stop)) for i in range(n)] for prompt in prompts]

    def _nth(self, prefix, i, is_stepwise):
        if not is_stepwise:
            a, b, c = list(itertools.product((2, 3, 4), repeat=3))[i]
            return ended((a, NEWLINE, b, NEWLINE, c, EOS))
        choice = 2 + i % 3
        n_steps_done = prefix.count(NEWLINE)
        if n_steps_done == 2:
            return ended((choice, EOS))
        return Sample((choice, NEWLINE), (-1.0, 0.0), FinishReason.STOP, "\n")


def ended(tokens):
    return Sample(tokens, tuple(-1.0 for _ in tokens), FinishReason.STOP, None)


class TableScorer:
    """V is a fixed, distinct number for every prefix; records what it was asked."""

    def __init__(self):
        self.asked: list[tuple[int, ...]] = []
        self.forgotten = []

    def score(self, sequences):
        self.asked.extend(tuple(s) for s in sequences)
        return [table_value(tuple(s)) for s in sequences]

    def forget(self, sequences):
        self.forgotten.extend(sequences)


def table_value(sequence):
    # A polynomial of the tokens: no two prefixes of this tree share a value, and order is not monotone in depth.
    return sum((i + 1) * token**2 % 11 + token / 100**i for i, token in enumerate(sequence)) % 5
