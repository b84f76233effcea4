"""Runs many searches in lockstep: what they ask for at one time goes to the networks in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.sampling import Sample, SamplingEngine, SamplingParams
from posttrain.search.asks import Expand, Round, Score, Search
from posttrain.search.scorer import ValueScorer
from posttrain.search.tree import SearchTree

RoundListener = Callable[[int, Round], None]  # (place of the search, the round)


def run_searches(
    engine: SamplingEngine,
    scorer: ValueScorer | None,
    searches: Sequence[Search],
    *,
    on_round: RoundListener | None = None,
) -> list[SearchTree]:
    """The tree of each search, in order. Raises ValueError when one asks for values and there is no scorer."""
    trees: dict[int, SearchTree] = {}
    asks: dict[int, Expand | Score] = {}

    def go_on(place: int, answer: Any) -> None:
        """Let a search run to its next ask."""
        try:
            ask = searches[place].send(answer)
            while isinstance(ask, Round):
                if scorer is not None:
                    scorer.forget(ask.dropped)
                if on_round is not None:
                    on_round(place, ask)
                ask = searches[place].send(None)
        except StopIteration as end:
            trees[place] = end.value
        else:
            asks[place] = ask

    for place in range(len(searches)):
        go_on(place, None)
    while asks:
        asked, asks = asks, {}
        answers = _values({i: a for i, a in asked.items() if isinstance(a, Score)}, scorer)
        answers |= _samples({i: a for i, a in asked.items() if isinstance(a, Expand)}, engine)
        for place in asked:
            go_on(place, answers[place])
    return [trees[place] for place in range(len(searches))]


def _values(asked: Mapping[int, Score], scorer: ValueScorer | None) -> dict[int, list[float]]:
    if not asked:
        return {}
    if scorer is None:
        raise ValueError("this search ranks by value and there is no value model: give one, or set value_weight to 0")
    values = iter(scorer.score([sequence for ask in asked.values() for sequence in ask.sequences]))
    return {place: [next(values) for _ in ask.sequences] for place, ask in asked.items()}


def _samples(asked: Mapping[int, Expand], engine: SamplingEngine) -> dict[int, list[list[Sample]]]:
    alike: dict[tuple[SamplingParams, int], list[int]] = {}
    for place, ask in asked.items():
        alike.setdefault((ask.params, ask.n), []).append(place)
    grown: dict[int, list[list[Sample]]] = {}
    for (params, n), places in alike.items():
        prefixes = [prefix for place in places for prefix in asked[place].prefixes]
        streams = [stream for place in places for stream in asked[place].streams]
        samples = iter(engine.sample(prefixes, params, n, streams=streams))
        grown |= {place: [next(samples) for _ in asked[place].prefixes] for place in places}
    return grown
