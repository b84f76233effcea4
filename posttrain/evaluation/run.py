"""`posttrain eval`: answer problems with one policy, decoded in several ways, and write one record per answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.encode import encode_prompt
from posttrain.data.problems import TemplateName, named_template, read_problems, require_distinct_ids
from posttrain.data.tokenizer_card import require_same_tokens
from posttrain.evaluation.decoding import Beam, Decoding, Greedy, Sampled, parse_decoding, require_distinct_records
from posttrain.evaluation.records import append_records, read_records
from posttrain.evaluation.solutions import read_solution, write_solutions
from posttrain.evaluation.statistics import majority_vote, wilson_interval
from posttrain.models.actor_critic import require_same_vocabulary
from posttrain.models.loading import device_named
from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model
from posttrain.pretrained import load_tokenizer
from posttrain.rewards.grade import final_answer, grade
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import Sample, SamplingEngine, SamplingParams
from posttrain.schema import AnswerRecord, FinishReason, Grade, Problem
from posttrain.search.beam import BeamParams, beam_search
from posttrain.search.best_of_n import score_samples
from posttrain.search.scorer import ReencodingScorer, ValueScorer
from posttrain.search.tree import NodeState


@dataclass(frozen=True)
class EvalConfig:
    """What to answer, with which networks, and how."""

    model: str = field(metadata={"help": "policy: a folder or Hub id that AutoModelForCausalLM reads"})
    problems: str = field(metadata={"help": "problems: a .jsonl file, a GSM8K file, or reasoning_gym:<dataset>"})
    output: str = field(metadata={"help": "answers are written to this .jsonl file, one record per answer"})
    name: str = field(metadata={"help": "first half of the method names in the records, e.g. 'oreo' in 'oreo/greedy'"})
    value_model: str | None = field(default=None, metadata={"help": "value model that picks answers and steers beams"})
    values_output: str | None = field(
        default=None, metadata={"help": "also write V along one sample of each of the first n_solutions problems here"}
    )
    n_solutions: int = field(default=400, metadata={"help": "solutions in values_output"})
    decoding: tuple[str, ...] = field(
        default=("greedy",), metadata={"help": "any of: greedy, sample:N (with best-of-n and majority), beam:WxE"}
    )
    template: TemplateName = field(default="plain", metadata={"help": "how a question becomes a prompt"})
    instruction: str = field(default="", metadata={"help": "system message of the chat template"})
    limit: int | None = field(default=None, metadata={"help": "answer only the first LIMIT problems"})
    max_new_tokens: int = field(default=512, metadata={"help": "token budget of one answer"})
    temperature: float = field(default=1.0, metadata={"help": "temperature of samples and beam steps"})
    top_p: float = field(default=1.0, metadata={"help": "cut samples to the likeliest tokens with this mass"})
    step_delimiters: tuple[str, ...] = field(default=("\n",), metadata={"help": "strings that end a step of a beam"})
    max_steps: int = field(default=20, metadata={"help": "most steps of a beam (the paper: 20)"})
    batch_size: int = field(default=256, metadata={"help": "sequences sampled or scored at once"})
    seed: int = field(default=0, metadata={"help": "seed of every sampled token"})
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "arithmetic of the networks"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto takes CUDA where there is one"})


@dataclass(frozen=True, slots=True)
class Answering:
    """Everything that decoding one set of problems needs, built once."""

    engine: SamplingEngine
    value_model: PreTrainedModel | None
    scorer: ValueScorer | None
    tokenizer: PreTrainedTokenizerBase
    problems: Sequence[Problem]
    prompts: Sequence[tuple[int, ...]]
    config: EvalConfig


def evaluate(config: EvalConfig) -> Path:
    """Answer every problem by every decoding of `config` and write the records; returns the file written."""
    decodings = _decodings(config)
    output = Path(config.output)
    if output.exists() and any(r.method.startswith(f"{config.name}/") for r in read_records(output)):
        raise FileExistsError(f"{output} has answers of '{config.name}' already: name another output or another name")
    answering = _load(config)
    for text, decoding in zip(config.decoding, decodings, strict=True):
        started = time.perf_counter()
        answered = list(answer(answering, decoding))
        append_records(output, answered)
        for line in _summary(answered):
            print(f"{line}   [{text}: {time.perf_counter() - started:.0f} s]")
    if config.values_output is not None:
        _write_values(answering, Path(config.values_output))
    return output


def answer(a: Answering, decoding: Decoding) -> Iterator[AnswerRecord]:
    """The records of one decoding, in the order of the problems."""
    match decoding:
        case Greedy():
            yield from _greedy(a)
        case Sampled():
            yield from _sampled(a, decoding)
        case Beam():
            yield from _beam(a, decoding)


def _decodings(config: EvalConfig) -> list[Decoding]:
    decodings = [parse_decoding(text) for text in config.decoding]
    require_distinct_records(config.decoding)
    if config.value_model is None and any(isinstance(d, Beam) for d in decodings):
        raise ValueError("a beam is steered by a value model: set value_model, or leave beam:... out of decoding")
    if config.value_model is None and config.values_output is not None:
        raise ValueError("values_output needs a value model: set value_model")
    return decodings


def _load(config: EvalConfig) -> Answering:
    dtype = getattr(torch, config.dtype)
    device = device_named(config.device)
    tokenizer = load_tokenizer(config.model)
    policy = load_policy(config.model, dtype=dtype)
    engine = TransformersEngine(policy, tokenizer, batch_size=config.batch_size, device=device)
    value_model, scorer = None, None
    if config.value_model is not None:
        require_same_tokens(tokenizer, config.value_model, "value model")
        value_model = load_value_model(config.value_model, dtype=dtype)
        require_same_vocabulary(policy, value_model, "value model", "both read the same token ids")
        value_model.to(device)  # pyright: ignore[reportArgumentType] - transformers hides that `to` is a method
        scorer = ReencodingScorer(value_model, batch_size=config.batch_size)
    template = named_template(config.template, tokenizer, instruction=config.instruction)
    problems = read_problems(config.problems, limit=config.limit, template=template)
    require_distinct_ids(problems)
    prompts = [tuple(encode_prompt(problem.prompt, tokenizer)) for problem in problems]
    return Answering(engine, value_model, scorer, tokenizer, problems, prompts, config)


def _write_values(a: Answering, path: Path) -> None:
    """V along the first sample of each of the first problems."""
    assert a.value_model is not None  # checked when the config was read
    n = min(a.config.n_solutions, len(a.problems))
    samples = a.engine.sample(a.prompts[:n], _whole_answers(a.config), 1)
    solutions = [
        read_solution(
            a.value_model,
            a.tokenizer,
            prompt,
            sample,
            _record(a, problem, "sample", sample, None),
            delimiters=a.config.step_delimiters,
        )
        for problem, prompt, (sample,) in zip(a.problems, a.prompts, samples, strict=False)
    ]
    write_solutions(path, solutions)


def _whole_answers(config: EvalConfig) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed
    )


def _greedy(a: Answering) -> Iterator[AnswerRecord]:
    params = SamplingParams(max_new_tokens=a.config.max_new_tokens, temperature=0.0, seed=a.config.seed)
    for problem, (sample,) in zip(a.problems, a.engine.sample(a.prompts, params, 1), strict=True):
        yield _record(a, problem, "greedy", sample, None)


def _sampled(a: Answering, sampled: Sampled) -> Iterator[AnswerRecord]:
    """n samples of each problem; of their first m = 2, 4, ..., the majority's answer and the best by value."""
    params = _whole_answers(a.config)
    if a.scorer is None:
        drawn = [[(s, None) for s in samples] for samples in a.engine.sample(a.prompts, params, sampled.n)]
    else:
        scored = score_samples(a.engine, a.scorer, a.prompts, params, sampled.n)
        drawn = [[(s.sample, s.value) for s in samples] for samples in scored]
    for problem, samples in zip(a.problems, drawn, strict=True):
        records = [_record(a, problem, "sample", sample, value) for sample, value in samples]
        yield from records
        for m in sampled.prefix_sizes():
            spent = sum(record.n_generated_tokens for record in records[:m])
            yield _chosen(a, "majority", _majority(records[:m]), m, spent)
            if a.scorer is not None:
                yield _chosen(a, "best_of_n", max(records[:m], key=_by_value), m, spent)


def _beam(a: Answering, beam: Beam) -> Iterator[AnswerRecord]:
    assert a.scorer is not None  # checked when the config was read
    step = replace(_whole_answers(a.config), stop=a.config.step_delimiters)
    params = BeamParams(beam.width, beam.expansions, a.config.max_steps, step)
    for problem, tree in zip(a.problems, beam_search(a.engine, a.scorer, a.prompts, params), strict=True):
        best = tree.best()
        ids = () if best is None else tree.completion(best)
        text = _text(a, ids)
        is_ended = best is not None and best.state is NodeState.ANSWER
        yield AnswerRecord(
            task_id=problem.task_id,
            method=f"{a.config.name}/beam",
            seed=a.config.seed,
            budget=beam.width * beam.expansions,
            text=text,
            grade=grade(problem, text),
            finish_reason=FinishReason.STOP if is_ended else FinishReason.LENGTH,
            n_generated_tokens=tree.n_generated_tokens,
            value=None if best is None else best.value,
        )


def _text(a: Answering, ids: Sequence[int]) -> str:
    return str(a.tokenizer.decode(list(ids), skip_special_tokens=True))


def _record(a: Answering, problem: Problem, how: str, sample: Sample, value: float | None) -> AnswerRecord:
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


def _summary(records: Sequence[AnswerRecord]) -> Iterator[str]:
    """One line per method and budget: accuracy with its 95 % Wilson interval, and tokens per problem."""
    groups: dict[tuple[str, int], list[AnswerRecord]] = {}
    for record in records:
        groups.setdefault((record.method, record.budget), []).append(record)
    for (method, budget), group in groups.items():
        n_correct = sum(record.grade is Grade.CORRECT for record in group)
        accuracy = wilson_interval(n_correct, len(group))
        tokens = sum(record.n_generated_tokens for record in group) / len(group)
        yield (
            f"{method:32} n={budget:<4} {accuracy.estimate:6.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]"
            f"   {len(group)} answers, {tokens:.0f} tokens each"
        )
