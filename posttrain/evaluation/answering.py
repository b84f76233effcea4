"""One policy's answers to a set of problems, decoded in one way, as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.evaluation.decoding import Beam, Decoding, Greedy, LikelihoodBeam, LogRatioBeam, Sampled
from posttrain.evaluation.eval_config import EvalConfig
from posttrain.evaluation.statistics import majority_vote
from posttrain.rewards.grade import final_answer, grade
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import AnswerRecord, FinishReason, Problem
from posttrain.search.beam import BeamParams, beam_search
from posttrain.search.best_of_n import score_samples
from posttrain.search.scorer import ValueScorer
from posttrain.search.token_beam import NextTokenScorer, TokenBeamParams, token_beam_search
from posttrain.search.token_scores import LikelihoodScorer
from posttrain.search.tree import NodeState, SearchTree


@dataclass(frozen=True, slots=True)
class Answering:
    """Everything that decoding one set of problems needs, built once."""

    engine: TransformersEngine
    value_model: PreTrainedModel | None
    scorer: ValueScorer | None
    log_ratio: NextTokenScorer | None
    tokenizer: PreTrainedTokenizerBase
    problems: Sequence[Problem]
    prompts: Sequence[tuple[int, ...]]
    config: EvalConfig


def answer(a: Answering, decoding: Decoding) -> Iterator[AnswerRecord]:
    """The records of one decoding, in the order of the problems."""
    match decoding:
        case Greedy():
            yield from _greedy(a)
        case Sampled():
            yield from _sampled(a, decoding)
        case Beam():
            yield from _beam(a, decoding)
        case LikelihoodBeam(width):
            yield from _token_beam(a, "likelihood", LikelihoodScorer(a.engine.model), width)
        case LogRatioBeam(width):
            assert a.log_ratio is not None  # checked when the config was read
            yield from _token_beam(a, "log_ratio", a.log_ratio, width)


def whole_answers(config: EvalConfig) -> SamplingParams:
    """How samples of whole answers are drawn."""
    return SamplingParams(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed
    )


def _greedy(a: Answering) -> Iterator[AnswerRecord]:
    params = SamplingParams(max_new_tokens=a.config.max_new_tokens, temperature=0.0, seed=a.config.seed)
    for problem, (sample,) in zip(a.problems, a.engine.sample(a.prompts, params, 1), strict=True):
        yield record_of(a, problem, "greedy", sample, None)


def _sampled(a: Answering, sampled: Sampled) -> Iterator[AnswerRecord]:
    """n samples of each problem; of their first m = 2, 4, ..., the majority's answer and the best by value."""
    params = whole_answers(a.config)
    if a.scorer is None:
        drawn = [[(s, None) for s in samples] for samples in a.engine.sample(a.prompts, params, sampled.n)]
    else:
        scored = score_samples(a.engine, a.scorer, a.prompts, params, sampled.n)
        drawn = [[(s.sample, s.value) for s in samples] for samples in scored]
    for problem, samples in zip(a.problems, drawn, strict=True):
        records = [record_of(a, problem, "sample", sample, value) for sample, value in samples]
        yield from records
        for m in sampled.prefix_sizes():
            spent = sum(record.n_generated_tokens for record in records[:m])
            yield _chosen(a, "majority", _majority(records[:m]), m, spent)
            if a.scorer is not None:
                yield _chosen(a, "best_of_n", max(records[:m], key=_by_value), m, spent)


def _beam(a: Answering, beam: Beam) -> Iterator[AnswerRecord]:
    assert a.scorer is not None  # checked when the config was read
    step = replace(whole_answers(a.config), stop=a.config.step_delimiters)
    params = BeamParams(beam.width, beam.expansions, a.config.max_steps, step)
    for problem, tree in zip(a.problems, beam_search(a.engine, a.scorer, a.prompts, params), strict=True):
        best = tree.best()
        value = None if best is None else best.value
        yield _searched(a, problem, "beam", beam.width * beam.expansions, tree, value)


def _token_beam(a: Answering, how: str, scorer: NextTokenScorer, width: int) -> Iterator[AnswerRecord]:
    params = TokenBeamParams(width, a.config.max_new_tokens, max(width, a.config.batch_size))
    trees = token_beam_search(scorer, a.prompts, a.engine.eos_ids, params)
    for problem, tree in zip(a.problems, trees, strict=True):
        yield _searched(a, problem, how, width, tree, None)


def _searched(
    a: Answering, problem: Problem, how: str, budget: int, tree: SearchTree, value: float | None
) -> AnswerRecord:
    """The record of a search's best answer; no answer is an empty one."""
    best = tree.best()
    text = _text(a, () if best is None else tree.completion(best))
    is_ended = best is not None and best.state is NodeState.ANSWER
    return AnswerRecord(
        task_id=problem.task_id,
        method=f"{a.config.name}/{how}",
        seed=a.config.seed,
        budget=budget,
        text=text,
        grade=grade(problem, text),
        finish_reason=FinishReason.STOP if is_ended else FinishReason.LENGTH,
        n_generated_tokens=tree.n_generated_tokens,
        value=value,
    )


def _text(a: Answering, ids: Sequence[int]) -> str:
    return str(a.tokenizer.decode(list(ids), skip_special_tokens=True))


def record_of(a: Answering, problem: Problem, how: str, sample: Sample, value: float | None) -> AnswerRecord:
    """The record of one sample."""
    text = _text(a, sample.token_ids)
    return AnswerRecord(
        task_id=problem.task_id,
        method=f"{a.config.name}/{how}",
        seed=a.config.seed,
        budget=1,
        text=text,
        grade=grade(problem, text),
        finish_reason=sample.finish_reason,
        n_generated_tokens=len(sample.token_ids),
        value=value,
    )


def _chosen(a: Answering, how: str, record: AnswerRecord, budget: int, n_generated_tokens: int) -> AnswerRecord:
    """The record of a chosen sample, charged for all the samples it was chosen from."""
    return replace(record, method=f"{a.config.name}/{how}", budget=budget, n_generated_tokens=n_generated_tokens)


def _by_value(record: AnswerRecord) -> tuple[bool, float]:
    assert record.value is not None
    return record.finish_reason is FinishReason.STOP, record.value


def _majority(records: Sequence[AnswerRecord]) -> AnswerRecord:
    """The first sample that gives the most frequent readable answer; the first sample where none can be read."""
    answers = [final_answer(record.text) for record in records]
    winner = majority_vote(answers)
    return records[0] if winner is None else records[answers.index(winner)]
