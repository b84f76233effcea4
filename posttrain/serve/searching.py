"""Drives one search as one of many tasks over a backend, and says what grew in each round."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from posttrain.search.asks import Expand, Round, Score, Search
from posttrain.search.tree import SearchTree
from posttrain.serve.backend import Backend

T = TypeVar("T")


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each call returns, in order; when one fails the others are cancelled and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [task.result() for task in tasks]


class SearchRun:
    """One search under way. What it cost and its tree of the last whole round can be read at any time."""

    def __init__(self, backend: Backend, search: Search) -> None:
        self._backend = backend
        self._search = search
        self.tree: SearchTree | None = None  # None: no round is over yet
        self.n_rounds = 0
        self.n_value_tokens = 0  # of the sequences that were scored
        self.n_value_tokens_cached = 0  # of these, those that did not have to be read for this search
        self.step_s: list[float] = []  # seconds of each round

    async def run(self, on_round: Callable[[Round], None]) -> SearchTree:
        """Let it run to its end. Cancelling ends it within what it waits for."""
        answer: Any = None
        round_began = time.monotonic()
        try:
            while True:
                try:
                    ask = self._search.send(answer)
                except StopIteration as end:
                    return end.value
                match ask:
                    case Expand():
                        answer = await together(self._samples(ask))
                    case Score():
                        answer = await self._values(ask)
                    case Round():
                        self.tree, answer = ask.tree, None
                        self.n_rounds += 1
                        now = time.monotonic()
                        self.step_s.append(now - round_began)
                        round_began = now
                        self._backend.forget(ask.dropped)
                        on_round(ask)
        finally:
            self._search.close()
            self._forget_all()

    async def _values(self, ask: Score) -> list[float]:
        scored = await self._backend.score(ask.sequences)
        n_tokens = sum(map(len, ask.sequences))
        self.n_value_tokens += n_tokens
        self.n_value_tokens_cached += n_tokens - scored.n_tokens_read
        return scored.values

    def _samples(self, ask: Expand) -> list[Coroutine[Any, Any, Any]]:
        return [
            self._backend.sample(prefix, ask.params, n=ask.n, stream=stream)
            for prefix, stream in zip(ask.prefixes, ask.streams, strict=True)
        ]

    def _forget_all(self) -> None:
        if self.tree is not None:
            parents = {node.parent for node in self.tree.nodes}
            leaves = [node for node in self.tree.nodes if node.index not in parents]
            self._backend.forget([self.tree.prompt + self.tree.completion(leaf) for leaf in leaves])
