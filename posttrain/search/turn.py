"""The next turn of an agent: several replies are sampled, a value model picks one (arXiv 2412.16145 v2, section 4.4).

What comes after a turn is not known beforehand, so a search cannot go deeper than one turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.sampling import Sample, SamplingEngine, SamplingParams
from posttrain.schema import FinishReason
from posttrain.search.scorer import ValueScorer


@dataclass(frozen=True, slots=True)
class ChosenTurn:
    """The reply to give, and what it took to find it."""

    sample: Sample
    value: float  # V of the afterstate: at the reply's last token, before the world has answered; reward units
    n_sampled_tokens: int  # of all candidates
    n_scored_tokens: int  # that the value model was given: conversation and reply, equal replies once


def choose_turns(
    engine: SamplingEngine,
    scorer: ValueScorer,
    prefixes: Sequence[Sequence[int]],
    params: SamplingParams,
    n_candidates: int,
    *,
    streams: Sequence[int] | None = None,
) -> list[ChosenTurn]:
    """For each conversation so far, the best of `n_candidates` sampled replies; `streams` as in SamplingEngine.sample.

    Best is the highest V(prefix + reply); of equal ones the first, and a reply that its budget cut only where none
    ended. V is read at the last token of the reply, EOS or delimiter included: that state is what training calls an
    afterstate, and rows without afterstates teach a value nothing about it.
    """
    drawn = engine.sample(prefixes, params, n_candidates, streams=streams)
    distinct = [
        list(dict.fromkeys((*prefix, *sample.token_ids) for sample in samples))
        for prefix, samples in zip(prefixes, drawn, strict=True)
    ]
    scores = iter(scorer.score([sequence for sequences in distinct for sequence in sequences]))
    chosen = [
        _chosen(tuple(prefix), samples, {sequence: next(scores) for sequence in sequences})
        for prefix, samples, sequences in zip(prefixes, drawn, distinct, strict=True)
    ]
    kept = {(*prefix, *turn.sample.token_ids) for prefix, turn in zip(prefixes, chosen, strict=True)}
    scorer.forget([sequence for sequences in distinct for sequence in sequences if sequence not in kept])
    return chosen


def _chosen(prefix: tuple[int, ...], samples: Sequence[Sample], value: dict[tuple[int, ...], float]) -> ChosenTurn:
    best = max(samples, key=lambda s: (s.finish_reason is FinishReason.STOP, value[(*prefix, *s.token_ids)]))
    return ChosenTurn(
        sample=best,
        value=value[(*prefix, *best.token_ids)],
        n_sampled_tokens=sum(len(sample.token_ids) for sample in samples),
        n_scored_tokens=sum(map(len, value)),
    )
