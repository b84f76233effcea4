"""One policy's answers to a chunk of problems, decoded in one way, as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.encode import encode_prompt
from posttrain.evaluation.completing import Completer, as_completion
from posttrain.evaluation.decoding import Beam, Decoding, Greedy, LikelihoodBeam, LogRatioBeam, Sampled
from posttrain.evaluation.eval_config import EvalConfig, name_of
from posttrain.evaluation.protocols import Protocol
from posttrain.evaluation.remote import Completion
from posttrain.evaluation.statistics import majority_vote
from posttrain.rewards.grade import extracted_answer, grade_all
from posttrain.rewards.pool import GradingPool
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingEngine, SamplingParams
from posttrain.schema import AnswerRecord, FinishReason, Grade, Problem
from posttrain.search.beam import BeamParams, beam_search
from posttrain.search.best_of_n import score_samples
from posttrain.search.scorer import ValueScorer
from posttrain.search.token_beam import NextTokenScorer, TokenBeamParams, token_beam_search
from posttrain.search.token_scores import LikelihoodScorer
from posttrain.search.tree import NodeState, SearchTree


@dataclass(frozen=True, slots=True)
class TokenAccess:
    """What value models and searches take: an engine in this process and its tokenizer."""

    engine: SamplingEngine
    tokenizer: PreTrainedTokenizerBase

    def prompts(self, problems: Sequence[Problem]) -> list[tuple[int, ...]]:
        return [tuple(encode_prompt(problem.prompt, self.tokenizer)) for problem in problems]

    @property
    def transformers_engine(self) -> TransformersEngine:
        assert isinstance(self.engine, TransformersEngine)  # checked when the config was read
        return self.engine


@dataclass(frozen=True, slots=True)
class Answering:
    """Everything that decoding takes, built once."""

    completer: Completer
    tokens: TokenAccess | None  # None behind a URL
    value_model: PreTrainedModel | None
    scorer: ValueScorer | None
    log_ratio: NextTokenScorer | None
    protocol: Protocol
    pool: GradingPool
    config: EvalConfig
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Problems that are answered together, so that their batches, and the last bits of their numbers, are the same."""

    start: int  # place of the first among all problems; the place of a problem is its random stream
    problems: Sequence[Problem]

    @property
    def streams(self) -> range:
        return range(self.start, self.start + len(self.problems))


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer before it is graded."""

    problem: Problem
    how: str
    budget: int
    text: str
    finish_reason: FinishReason
    n_generated_tokens: int
    value: float | None


def answer(a: Answering, chunk: Chunk, decoding: Decoding) -> list[AnswerRecord]:
    """The records of one decoding, in the order of the problems."""
    match decoding:
        case Greedy():
            return graded(a, list(_greedy(a, chunk)))
        case Sampled():
            return list(_sampled(a, chunk, decoding))
        case Beam():
            return graded(a, list(_beam(a, chunk, decoding)))
        case LikelihoodBeam(width):
            scorer = LikelihoodScorer(_tokens(a).transformers_engine.model)
            return graded(a, list(_token_beam(a, chunk, "likelihood", scorer, width)))
        case LogRatioBeam(width):
            assert a.log_ratio is not None  # checked when the config was read
            return graded(a, list(_token_beam(a, chunk, "log_ratio", a.log_ratio, width)))


def whole_answers(a: Answering) -> SamplingParams:
    """How samples of whole answers are drawn."""
    config = a.config
    return SamplingParams(
        max_new_tokens=a.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        stop=a.protocol.stop,
    )


def graded(a: Answering, answers: Sequence[_Answer]) -> list[AnswerRecord]:
    """Records of these answers, graded together by every grader of the protocol."""
    names = a.protocol.graders
    if names:
        pairs = [(replace(answer.problem, grader=name), answer.text) for name in names for answer in answers]
        flat = grade_all(pairs, a.pool)
        by_grader = [flat[k * len(answers) : (k + 1) * len(answers)] for k in range(len(names))]
    else:
        by_grader = [grade_all([(answer.problem, answer.text) for answer in answers], a.pool)]
    return [
        _record(a, answer, tuple(zip(names, grades, strict=True)) if names else (), grades[0])
        for answer, grades in zip(answers, zip(*by_grader, strict=True), strict=True)
    ]


def single_answer(a: Answering, problem: Problem, how: str, completion: Completion, value: float | None) -> _Answer:
    """One completion as an answer to its problem."""
    text = a.protocol.answer_in(completion.text)
    return _Answer(problem, how, 1, text, completion.finish_reason, completion.n_tokens, value)


def _greedy(a: Answering, chunk: Chunk) -> Iterator[_Answer]:
    params = SamplingParams(max_new_tokens=a.max_new_tokens, temperature=0.0, seed=a.config.seed, stop=a.protocol.stop)
    for problem, (completion,) in zip(chunk.problems, _complete(a, chunk, params, 1), strict=True):
        yield single_answer(a, problem, "greedy", completion, None)


def _sampled(a: Answering, chunk: Chunk, sampled: Sampled) -> Iterator[AnswerRecord]:
    """n samples of each problem; of their first m = 2, 4, ..., the majority's answer and the best by value."""
    params = whole_answers(a)
    if a.scorer is None:
        drawn = [[(c, None) for c in completions] for completions in _complete(a, chunk, params, sampled.n)]
    else:
        t = _tokens(a)
        scored = score_samples(t.engine, a.scorer, t.prompts(chunk.problems), params, sampled.n, streams=chunk.streams)
        drawn = [[(as_completion(s.sample, t.tokenizer), s.value) for s in samples] for samples in scored]
    answers = [
        single_answer(a, problem, "sample", completion, value)
        for problem, completions in zip(chunk.problems, drawn, strict=True)
        for completion, value in completions
    ]
    records = graded(a, answers)
    for place, problem in enumerate(chunk.problems):
        own = records[place * sampled.n : (place + 1) * sampled.n]
        yield from own
        for m in sampled.prefix_sizes():
            spent = sum(record.n_generated_tokens for record in own[:m])
            yield _chosen(a, "majority", _majority(a.protocol.regraded(problem), own[:m]), m, spent)
            if a.scorer is not None:
                yield _chosen(a, "best_of_n", max(own[:m], key=_by_value), m, spent)


def _beam(a: Answering, chunk: Chunk, beam: Beam) -> Iterator[_Answer]:
    assert a.scorer is not None  # checked when the config was read
    step = replace(whole_answers(a), stop=a.config.step_delimiters)
    params = BeamParams(beam.width, beam.expansions, a.config.max_steps, step)
    t = _tokens(a)
    trees = beam_search(t.engine, a.scorer, t.prompts(chunk.problems), params, streams=chunk.streams)
    for problem, tree in zip(chunk.problems, trees, strict=True):
        best = tree.best()
        value = None if best is None else best.value
        yield _searched(a, problem, "beam", beam.width * beam.expansions, tree, value)


def _token_beam(a: Answering, chunk: Chunk, how: str, scorer: NextTokenScorer, width: int) -> Iterator[_Answer]:
    t = _tokens(a)
    params = TokenBeamParams(width, a.max_new_tokens, max(width, a.config.batch_size))
    trees = token_beam_search(scorer, t.prompts(chunk.problems), t.transformers_engine.eos_ids, params)
    for problem, tree in zip(chunk.problems, trees, strict=True):
        yield _searched(a, problem, how, width, tree, None)


def _complete(a: Answering, chunk: Chunk, params: SamplingParams, n: int) -> list[list[Completion]]:
    return a.completer.complete(chunk.problems, chunk.streams, params, n)


def _tokens(a: Answering) -> TokenAccess:
    assert a.tokens is not None  # a URL is refused for what takes tokens, when the config is read
    return a.tokens


def _searched(a: Answering, problem: Problem, how: str, budget: int, tree: SearchTree, value: float | None) -> _Answer:
    """A search's best answer; no answer is an empty one."""
    best = tree.best()
    ids = [] if best is None else list(tree.completion(best))
    text = str(_tokens(a).tokenizer.decode(ids, skip_special_tokens=True))
    is_ended = best is not None and best.state is NodeState.ANSWER
    finish_reason = FinishReason.STOP if is_ended else FinishReason.LENGTH
    return _Answer(problem, how, budget, text, finish_reason, tree.n_generated_tokens, value)


def _record(a: Answering, answer: _Answer, grades: tuple[tuple[str, Grade], ...], grade: Grade) -> AnswerRecord:
    return AnswerRecord(
        task_id=answer.problem.task_id,
        method=f"{name_of(a.config)}/{answer.how}",
        seed=a.config.seed,
        budget=answer.budget,
        text=answer.text,
        grade=grade,
        finish_reason=answer.finish_reason,
        n_generated_tokens=answer.n_generated_tokens,
        value=answer.value,
        grades=grades,
        tags=answer.problem.tags,
    )


def _chosen(a: Answering, how: str, record: AnswerRecord, budget: int, n_generated_tokens: int) -> AnswerRecord:
    """The record of a chosen sample, charged for all the samples it was chosen from."""
    method = f"{name_of(a.config)}/{how}"
    return replace(record, method=method, budget=budget, n_generated_tokens=n_generated_tokens)


def _by_value(record: AnswerRecord) -> tuple[bool, float]:
    assert record.value is not None
    return record.finish_reason is FinishReason.STOP, record.value


def _majority(problem: Problem, records: Sequence[AnswerRecord]) -> AnswerRecord:
    """The first sample that gives the most frequent readable answer; the first sample where none can be read."""
    answers = [extracted_answer(problem, record.text) for record in records]
    winner = majority_vote(answers)
    return records[0] if winner is None else records[answers.index(winner)]
