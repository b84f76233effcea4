"""Values for many callers: what they ask for between two turns of the model thread is read in one batch.

The thread is the one that samples. It decodes one token of every row and then scores what has come, so that no
candidate waits for the end of somebody's generation, and neither network waits for the cores that the other has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from posttrain.rollout.model_thread import Inbox, ModelThread, answer, open_future, refuse
from posttrain.search.scorer import Scored, require_tokens


class CountingScorer(Protocol):
    """A scorer of whole sequences and of every token, which counts what that cost it and for whom."""

    n_tokens_read: int
    n_tokens_cached: int  # tokens of scored sequences that did not have to be read for them

    def score_groups(self, groups: Sequence[Sequence[Sequence[int]]]) -> list[Scored]:
        """V of all groups' sequences at their last tokens; each token read counts for one group."""
        ...

    def score_all(self, sequence: Sequence[int]) -> Scored:
        """V at every token of one sequence."""
        ...

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        """A hint that nothing will go on from these: what is kept for them alone may be freed."""
        ...


@dataclass(slots=True, eq=False)
class _Ask:
    sequences: tuple[tuple[int, ...], ...]
    future: Future[Scored] = field(default_factory=open_future)


class ValueQueue:
    """A scorer for callers on any thread. Their sequences share batches, about `max_sequences` of them a turn.

    An error of a batch fails the callers alone whose sequences raise it when they are read by themselves.
    """

    def __init__(
        self, scorer: CountingScorer, *, n_positions: int, n_vocab: int, max_sequences: int, thread: ModelThread
    ) -> None:
        self.scorer = scorer
        self.n_positions = n_positions
        self.n_vocab = n_vocab
        self.max_sequences = max_sequences
        self._last: Inbox[_Ask] = Inbox(thread.wake)  # V of each sequence at its last token
        self._every: Inbox[_Ask] = Inbox(thread.wake)  # V at every token of the one sequence
        self._dropped: Inbox[Sequence[Sequence[int]]] = Inbox(thread.wake)
        self._waiting: deque[_Ask] = deque()
        self._waiting_for_every: deque[_Ask] = deque()
        thread.add(self)

    def score(self, sequences: Sequence[Sequence[int]]) -> Future[Scored]:
        """V of each sequence at its last token. The future can be cancelled until it is done.

        Raises ValueError for a sequence that is empty, too long or has unknown tokens, and RuntimeError once the
        thread is closed.
        """
        return self._put(self._last, sequences)

    def score_all(self, sequence: Sequence[int]) -> Future[Scored]:
        """V at every token of one sequence. Raises what `score` raises."""
        return self._put(self._every, [sequence])

    def forget(self, sequences: Sequence[Sequence[int]]) -> None:
        """A hint that nothing will go on from these; once the thread is closed there is nothing left to free."""
        with suppress(RuntimeError):
            self._dropped.put(sequences)

    def take_turn(self) -> bool:
        for sequences in self._dropped.take():
            self.scorer.forget(sequences)
        self._waiting.extend(self._last.take())
        self._waiting_for_every.extend(self._every.take())
        if batch := self._next_batch():
            self._score(batch)
        if self._waiting_for_every:
            self._score_all(self._waiting_for_every.popleft())
        return bool(self._waiting or self._waiting_for_every)

    def fail(self, error: Exception) -> None:
        for ask in (*self._waiting, *self._waiting_for_every):
            refuse(ask.future, error)

    def close(self) -> None:
        self._dropped.close()
        for ask in (*self._last.close(), *self._every.close(), *self._waiting, *self._waiting_for_every):
            ask.future.cancel()

    def _put(self, inbox: Inbox[_Ask], sequences: Sequence[Sequence[int]]) -> Future[Scored]:
        require_tokens(sequences)
        for sequence in sequences:
            if len(sequence) > self.n_positions:
                raise ValueError(
                    f"a sequence of {len(sequence)} tokens cannot be scored: the value model reads {self.n_positions}"
                )
            if not 0 <= min(sequence) <= max(sequence) < self.n_vocab:
                raise ValueError(
                    f"a sequence has ids from {min(sequence)} to {max(sequence)}, the value model knows 0 to "
                    f"{self.n_vocab - 1}"
                )
        ask = _Ask(tuple(tuple(sequence) for sequence in sequences))
        inbox.put(ask)
        return ask.future

    def _next_batch(self) -> list[_Ask]:
        """Those that wait longest; who gave up is left out."""
        batch: list[_Ask] = []
        n_sequences = 0
        while self._waiting and (not batch or n_sequences + len(self._waiting[0].sequences) <= self.max_sequences):
            ask = self._waiting.popleft()
            if not ask.future.done():
                batch.append(ask)
                n_sequences += len(ask.sequences)
        return batch

    def _score(self, batch: Sequence[_Ask]) -> None:
        try:
            scored = self.scorer.score_groups([ask.sequences for ask in batch])
        except Exception as error:
            if len(batch) == 1:
                refuse(batch[0].future, error)
                return
            for ask in batch:
                self._score([ask])
            return
        for ask, of_ask in zip(batch, scored, strict=True):
            answer(ask.future, of_ask)

    def _score_all(self, ask: _Ask) -> None:
        if ask.future.done():
            return
        try:
            answer(ask.future, self.scorer.score_all(ask.sequences[0]))
        except Exception as error:
            refuse(ask.future, error)
