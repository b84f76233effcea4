"""Does what an ask says with a backend: plain samples or a search, told piece by piece to whoever listens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.sampling import Sample, TopTokens
from posttrain.schema import FinishReason
from posttrain.search.spec import start
from posttrain.search.tree import Node, NodeState, SearchTree
from posttrain.serve.asked import Ask, SearchAsk
from posttrain.serve.backend import Backend
from posttrain.serve.errors import ApiError
from posttrain.serve.searching import SearchRun, together
from posttrain.serve.text_stream import TextStream, completion_text
from posttrain.serve.tree_view import TreeView

OUT_OF_BUDGET = "budget"  # the third finish reason, beside those of FinishReason


@dataclass(frozen=True, slots=True)
class Delta:
    """More of one choice."""

    choice: int
    text: str
    token_ids: tuple[int, ...] = ()
    logp: tuple[float, ...] = ()
    top: tuple[TopTokens, ...] = ()  # of each token's place


@dataclass(frozen=True, slots=True)
class Step:
    """A search event, as JSON."""

    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    text: str
    finish_reason: str
    token_ids: tuple[int, ...]
    logp: tuple[float, ...] = ()
    top: tuple[TopTokens, ...] = ()  # of each token's place, if asked for


@dataclass(frozen=True, slots=True)
class Answer:
    choices: list[Choice]
    usage: dict[str, int]
    search: dict[str, Any] | None = None  # what `search` of a reply holds
    step_s: list[float] = field(default_factory=list)  # seconds of each round of a search


Emit = Callable[[Delta | Step], None]


async def answer(backend: Backend, ask: Ask, *, request_id: str, ends_at: float, emit: Emit | None) -> Answer:
    """Work until it is done, or until `ends_at` on the event loop's clock.

    Raises ApiError 504 when time is over before there is anything to answer.
    """
    if ask.search is not None:
        return await _Searching(backend, ask, ask.search, request_id, emit).answer(ends_at)
    return await _Sampling(backend, ask, emit).answer(ends_at)


class _Sampling:
    """Plain samples."""

    def __init__(self, backend: Backend, ask: Ask, emit: Emit | None) -> None:
        self._backend = backend
        self._ask = ask
        self._emit = emit
        self._heard: list[_Heard] = []
        if emit is not None:
            n_choices = ask.n * len(ask.prompts)
            self._heard = [_Heard(i, TextStream(backend.tokenizer, ask.sampling.stop), emit) for i in range(n_choices)]

    async def answer(self, ends_at: float) -> Answer:
        try:
            async with asyncio.timeout_at(ends_at):
                drawn = await together(self._draw(place) for place in range(len(self._ask.prompts)))
        except TimeoutError:
            if not any(heard.token_ids for heard in self._heard):
                raise _too_late() from None
            return self._answered([heard.cut() for heard in self._heard])
        samples = [sample for of_prompt in drawn for sample in of_prompt]
        for heard, sample in zip(self._heard, samples, strict=False):  # nobody hears an answer that is not streamed
            heard.end(sample.stop_string)
        return self._answered([self._choice(sample) for sample in samples])

    async def _draw(self, place: int) -> list[Sample]:
        ask, first = self._ask, place * self._ask.n

        def on_token(choice: int, token_id: int, logp: float, top: TopTokens) -> None:
            self._heard[first + choice].take(token_id, logp, top)

        return await self._backend.sample(
            ask.prompts[place],
            ask.sampling,
            n=ask.n,
            stream=place,
            on_token=on_token if self._heard else None,
            n_top=ask.n_top,
        )

    def _choice(self, sample: Sample) -> Choice:
        text = completion_text(self._backend.tokenizer, sample.token_ids, sample.stop_string)
        return Choice(text, sample.finish_reason.value, sample.token_ids, sample.logp, sample.top)

    def _answered(self, choices: list[Choice]) -> Answer:
        return Answer(choices, usage_of(self._ask.prompts, [choice.token_ids for choice in choices]))


class _Heard:
    """One choice of a stream, as far as it has been heard."""

    def __init__(self, choice: int, text: TextStream, emit: Emit) -> None:
        self.token_ids: list[int] = []
        self._choice = choice
        self._text = text
        self._emit = emit
        self._new: list[tuple[int, float, TopTokens]] = []  # tokens whose text is not out yet
        self._said: list[str] = []

    def take(self, token_id: int, logp: float, top: TopTokens) -> None:
        self.token_ids.append(token_id)
        self._new.append((token_id, logp, top))
        self._say(self._text.push(token_id))

    def end(self, stop_string: str | None) -> None:
        self._say(self._text.end(stop_string), is_end=True)

    def cut(self) -> Choice:
        """End where time did."""
        self.end(None)
        return Choice("".join(self._said), OUT_OF_BUDGET, tuple(self.token_ids))

    def _say(self, text: str, *, is_end: bool = False) -> None:
        if text or (is_end and self._new):
            token_ids, logp, top = zip(*self._new, strict=True) if self._new else ((), (), ())
            self._new = []
            self._said.append(text)
            self._emit(Delta(self._choice, text, token_ids, logp, top))


class _Searching:
    """One answer, found by a search."""

    def __init__(self, backend: Backend, ask: Ask, search: SearchAsk, request_id: str, emit: Emit | None) -> None:
        self._backend = backend
        self._ask = ask
        self._search = search
        self._id = request_id
        self._emit = emit
        self._began = time.monotonic()
        self._view: TreeView | None = None
        stream = 0  # one search, one stream: another seed gives another search
        self._run = SearchRun(backend, start(search.spec, ask.prompts[0], ask.sampling, stream, search.answer_of))

    async def answer(self, ends_at: float) -> Answer:
        is_late = False
        try:
            async with asyncio.timeout_at(ends_at):
                tree = await self._run.run(lambda ask: self._show(ask.tree))
        except TimeoutError:
            if self._run.tree is None:
                raise _too_late() from None
            tree, is_late = self._run.tree, True
        view = self._view or TreeView(self._backend.tokenizer, tree)
        winner = view.best() or tree.root
        choice = Choice(view.text(winner), _finish_reason(tree, winner, is_late=is_late), tree.completion(winner))
        result = self._result(tree, view, winner, choice)
        if self._emit is not None:
            self._emit(Step({**result, "nodes": view.changes()}))
            for node in tree.path(winner):
                self._emit(Delta(0, view.own_text(node)))
        if self._search.returns_tree and self._emit is None:
            result["tree"] = {"prompt_token_ids": list(tree.prompt), "nodes": view.whole()}
        return Answer([choice], result["usage"], result, self._run.step_s)

    def _show(self, tree: SearchTree) -> None:
        if self._view is None:
            self._view = TreeView(self._backend.tokenizer, tree)
        if self._emit is None:
            return
        view, best = self._view, self._view.best()
        self._emit(
            Step(
                {
                    "object": "search.step",
                    "id": self._id,
                    "step": self._run.n_rounds,
                    "nodes": view.changes(),
                    "kept": [node.index for node in view.kept()],
                    "best": best and {"index": best.index, "text": view.text(best), "value": best.value},
                    "usage": self._usage(tree, best or tree.root),
                    "elapsed_ms": self._elapsed_ms(),
                }
            )
        )

    def _result(self, tree: SearchTree, view: TreeView, winner: Node, choice: Choice) -> dict[str, Any]:
        return {
            "object": "search.result",
            "id": self._id,
            "algorithm": self._search.spec.algorithm.value,
            "winner": winner.index,
            "text": choice.text,
            "token_ids": list(choice.token_ids),
            "value": winner.value,
            "score": winner.score,
            "finish_reason": choice.finish_reason,
            "is_over_budget": tree.is_over_budget or choice.finish_reason == OUT_OF_BUDGET,
            "usage": self._usage(tree, winner),
            "elapsed_ms": self._elapsed_ms(),
        }

    def _usage(self, tree: SearchTree, best: Node) -> dict[str, int]:
        return usage_of(self._ask.prompts, [tree.completion(best)]) | {
            "generated_tokens": tree.n_generated_tokens,
            "value_calls": tree.n_value_calls,
            "value_tokens": self._run.n_value_tokens,
            "value_tokens_cached": self._run.n_value_tokens_cached,
            "search_steps": self._run.n_rounds,
            "pruned": sum(node.state is NodeState.PRUNED for node in tree.nodes),
        }

    def _elapsed_ms(self) -> int:
        return round(1000 * (time.monotonic() - self._began))


def usage_of(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> dict[str, int]:
    n_prompt, n_completion = sum(map(len, prompts)), sum(map(len, completions))
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "generated_tokens": n_completion,
    }


def _finish_reason(tree: SearchTree, winner: Node, *, is_late: bool) -> str:
    """Of the winner's text: it ended, or the search had to stop, or it came to max_tokens."""
    if winner.state is NodeState.ANSWER:
        return FinishReason.STOP.value
    return OUT_OF_BUDGET if is_late or tree.is_over_budget else FinishReason.LENGTH.value


def _too_late() -> ApiError:
    return ApiError(
        504, "the deadline came before anything could be answered: ask for less, or later", code="deadline_exceeded"
    )
