"""A turn picked by a value model is the one that a plain loop over sampled replies would pick."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason
from posttrain.search.turn import choose_turns

PARAMS = SamplingParams(max_new_tokens=4, temperature=1.0, seed=0)


def draw(*what: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:4], "little")


class DrawnEngine:
    """Replies that are a function of the prompt, its stream and the place of the reply; every fifth is cut."""

    def sample(self, prompts, params: SamplingParams, n: int, *, streams):
        return [
            [self.reply(tuple(prompt), stream, place) for place in range(n)]
            for prompt, stream in zip(prompts, streams, strict=True)
        ]

    @staticmethod
    def reply(prompt: tuple[int, ...], stream: int, place: int) -> Sample:
        number = draw(prompt, stream, place)
        ids = tuple(number // 3**i % 3 for i in range(1 + number % 4))
        return Sample(ids, (-1.0,) * len(ids), FinishReason.LENGTH if number % 5 == 0 else FinishReason.STOP, None)


class DrawnScorer:
    """Values that are a function of the sequence; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.forgotten: list[tuple[int, ...]] = []

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        self.asked += map(tuple, sequences)
        return [self.value(tuple(sequence)) for sequence in sequences]

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        self.forgotten += map(tuple, sequences)

    @staticmethod
    def value(sequence: tuple[int, ...]) -> float:
        return draw(sequence) % 1000 / 1000


def plain_choice(prompt: tuple[int, ...], stream: int, n: int) -> tuple[Sample, float, int, int]:
    """One conversation, one reply after another: keep it if it is better than the best so far."""
    best, best_value = None, 0.0
    n_sampled, read = 0, set()
    for place in range(n):
        reply = DrawnEngine.reply(prompt, stream, place)
        value = DrawnScorer.value(prompt + reply.token_ids)
        n_sampled += len(reply.token_ids)
        read.add(prompt + reply.token_ids)
        is_cut = reply.finish_reason is FinishReason.LENGTH
        was_cut = best is not None and best.finish_reason is FinishReason.LENGTH
        if best is None or (was_cut and not is_cut) or (was_cut == is_cut and value > best_value):
            best, best_value = reply, value
    assert best is not None
    return best, best_value, n_sampled, sum(map(len, read))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_choice_counts_and_values_equal_those_of_a_plain_loop(n: int) -> None:
    prompts = [tuple(draw("prompt", i) // 3**j % 3 for j in range(1 + i % 3)) for i in range(60)]
    streams = [draw("stream", i) for i in range(60)]
    scorer = DrawnScorer()
    chosen = choose_turns(DrawnEngine(), scorer, prompts, PARAMS, n, streams=streams)
    found = [(turn.sample, turn.value, turn.n_sampled_tokens, turn.n_scored_tokens) for turn in chosen]
    assert found == [plain_choice(prompt, stream, n) for prompt, stream in zip(prompts, streams, strict=True)]
    kept = {prompt + turn.sample.token_ids for prompt, turn in zip(prompts, chosen, strict=True)}
    assert set(scorer.forgotten) == set(scorer.asked) - kept  # nothing will go on from the others
    if n == 7:  # the cases that a plain maximum would get wrong do occur
        cut = [turn for turn in chosen if turn.sample.finish_reason is FinishReason.LENGTH]
        assert len(cut) < 60 // 5


def test_value_is_read_behind_the_last_token_of_the_reply_and_equal_replies_are_read_once() -> None:
    class SameEngine:
        def sample(self, prompts, params, n, *, streams=None):
            return [[Sample((7, 2), (-0.1, -0.1), FinishReason.STOP, "\n")] * n for _ in prompts]

    scorer = DrawnScorer()
    (turn,) = choose_turns(SameEngine(), scorer, [[5, 6]], PARAMS, 4)
    assert scorer.asked == [(5, 6, 7, 2)]
    assert (turn.n_sampled_tokens, turn.n_scored_tokens) == (8, 4)  # 4 replies of 2 tokens; one sequence of 4
    assert turn.value == DrawnScorer.value((5, 6, 7, 2))
