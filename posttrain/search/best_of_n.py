"""Best-of-n: whole answers sampled independently, the value model picks one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.sampling import Sample, SamplingEngine, SamplingParams
from posttrain.schema import FinishReason
from posttrain.search.scorer import ValueScorer


@dataclass(frozen=True, slots=True)
class ScoredSample:
    sample: Sample
    value: float  # V before the EOS of an answer, or at the last token of one that ran out of tokens


def score_samples(
    engine: SamplingEngine,
    scorer: ValueScorer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    n: int,
    *,
    streams: Sequence[int] | None = None,
) -> list[list[ScoredSample]]:
    """n whole answers per prompt in the order sampled, each with its value; `streams` as in SamplingEngine.sample."""
    if params.stop:
        raise ValueError(
            f"best-of-n samples whole answers, but sampling.stop is {params.stop}: use beam_search for steps"
        )
    drawn = engine.sample(prompts, params, n, streams=streams)
    values = iter(
        scorer.score(
            [
                tuple(prompt) + tokens_before_eos(sample)
                for prompt, samples in zip(prompts, drawn, strict=True)
                for sample in samples
            ]
        )
    )
    return [[ScoredSample(sample, next(values)) for sample in samples] for samples in drawn]


def best_of(samples: Sequence[ScoredSample]) -> ScoredSample:
    """The sample of highest value; one that ran out of tokens only when none ended."""
    return max(samples, key=lambda s: (s.sample.finish_reason is FinishReason.STOP, s.value))


def tokens_before_eos(sample: Sample) -> tuple[int, ...]:
    """The tokens whose last one is where V of a whole answer is read: V after EOS is 0 by definition."""
    return sample.token_ids[:-1] if sample.finish_reason is FinishReason.STOP else sample.token_ids
