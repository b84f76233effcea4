"""ValueQueue: asks that share a batch, and asks that do not disturb each other."""

from __future__ import annotations

from concurrent.futures import CancelledError

import pytest

from posttrain.search.scorer import Scored
from posttrain.serve.value_queue import ValueQueue
from tests.rollout.tiny_engines import TurnsByHand

POISON = 13


class SumScorer:
    """V is the sum of the tokens, all of which it reads; notes every batch, and cannot read POISON."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.forgotten: list[tuple[int, ...]] = []
        self.n_tokens_read = self.n_tokens_cached = 0

    def score_groups(self, groups) -> list[Scored]:
        self.batches.append([sequence for group in groups for sequence in group])
        if any(POISON in sequence for sequence in self.batches[-1]):
            raise ArithmeticError("an unlucky token")
        return [Scored([float(sum(sequence)) for sequence in group], sum(map(len, group))) for group in groups]

    def score_all(self, sequence) -> Scored:
        return Scored([float(sum(sequence[: t + 1])) for t in range(len(sequence))], len(sequence))

    def forget(self, sequences) -> None:
        self.forgotten += sequences


@pytest.fixture
def scorer() -> SumScorer:
    return SumScorer()


@pytest.fixture
def queue(scorer: SumScorer) -> ValueQueue:
    return ValueQueue(scorer, n_positions=8, n_vocab=20, max_sequences=4, thread=TurnsByHand())


def test_asks_between_two_turns_share_a_batch_and_each_gets_its_own_values_and_count(queue, scorer):
    first, second = queue.score([[1], [2, 3]]), queue.score([[4]])
    assert queue.take_turn() is False
    assert scorer.batches == [[(1,), (2, 3), (4,)]]
    assert (first.result(), second.result()) == (Scored([1.0, 5.0], 3), Scored([4.0], 1))


def test_a_turn_takes_the_asks_that_fit_in_order_and_a_larger_one_whole(queue, scorer):
    futures = [queue.score([[i]] * n) for i, n in enumerate((3, 2, 1, 6), start=1)]
    assert [queue.take_turn() for _ in range(3)] == [True, True, False]
    assert [[sequence[0] for sequence in batch] for batch in scorer.batches] == [[1] * 3, [2, 2, 3], [4] * 6]
    assert futures[3].result().values == [4.0] * 6


def test_error_of_a_shared_batch_fails_only_the_caller_whose_sequences_raise_it(queue):
    good, bad, other = queue.score([[1]]), queue.score([[POISON]]), queue.score([[2]])
    queue.take_turn()
    assert (good.result().values, other.result().values) == ([1.0], [2.0])
    assert isinstance(bad.exception(), ArithmeticError)


def test_cancelled_ask_is_not_read(queue, scorer):
    given_up, kept = queue.score([[1]]), queue.score([[2]])
    whole = queue.score_all([1, 2])
    assert given_up.cancel() and whole.cancel()
    queue.take_turn()
    assert scorer.batches == [[(2,)]]
    assert kept.result().values == [2.0]


def test_values_at_every_token_come_between_batches_and_one_sequence_a_turn(queue):
    first, second, last = queue.score_all([1, 2]), queue.score_all([5, 5, 5]), queue.score([[7]])
    assert queue.take_turn() is True
    assert (first.result(), second.done(), last.result().values) == (Scored([1.0, 3.0], 2), False, [7.0])
    assert queue.take_turn() is False
    assert second.result().values == [5.0, 10.0, 15.0]


def test_hints_reach_the_scorer_on_its_own_thread(queue, scorer):
    queue.forget([(1, 2)])
    assert scorer.forgotten == []
    queue.take_turn()
    assert scorer.forgotten == [(1, 2)]


@pytest.mark.parametrize(
    ("sequence", "message"), [([], "empty sequence"), ([1] * 9, "9 tokens .* reads 8"), ([1, 20], "ids from 1 to 20")]
)
def test_sequence_that_cannot_be_read_is_refused_at_once(queue, sequence, message):
    with pytest.raises(ValueError, match=message):
        queue.score([[1], sequence])
    with pytest.raises(ValueError, match=message):
        queue.score_all(sequence)


def test_close_cancels_what_waits_and_refuses_more(queue):
    waiting = queue.score([[1]])
    queue.close()
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(RuntimeError, match="closed"):
        queue.score([[1]])
    queue.forget([[1]])  # a search says it as it is cancelled, which close() does
