"""`posttrain eval`: answer problems with one policy, decoded in several ways, and write one record per answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from posttrain.data.encode import encode_prompt
from posttrain.data.problems import named_template, read_problems, require_distinct_ids
from posttrain.data.tokenizer_card import require_same_tokens
from posttrain.evaluation.answering import Answering, answer, record_of, whole_answers
from posttrain.evaluation.decoding import LogRatioBeam
from posttrain.evaluation.eval_config import EvalConfig, decodings_of
from posttrain.evaluation.records import append_records, read_records
from posttrain.evaluation.solutions import read_solution, write_solutions
from posttrain.evaluation.statistics import wilson_interval
from posttrain.models.actor_critic import require_same_vocabulary
from posttrain.models.loading import device_named
from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model
from posttrain.pretrained import load_tokenizer
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.schema import AnswerRecord, Grade
from posttrain.search.scorer import ReencodingScorer
from posttrain.search.token_scores import LogRatioScorer


def evaluate(config: EvalConfig) -> Path:
    """Answer every problem by every decoding of `config` and write the records; returns the file written."""
    decodings = decodings_of(config)
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


def _load(config: EvalConfig) -> Answering:
    dtype = getattr(torch, config.dtype)
    device = device_named(config.device)
    tokenizer = load_tokenizer(config.model)
    policy = load_policy(config.model, dtype=dtype)
    engine = TransformersEngine(policy, tokenizer, batch_size=config.batch_size, device=device)
    value_model, scorer, log_ratio = None, None, None
    if config.value_model is not None:
        require_same_tokens(tokenizer, config.value_model, "value model")
        value_model = load_value_model(config.value_model, dtype=dtype)
        require_same_vocabulary(policy, value_model, "value model", "both read the same token ids")
        value_model.to(device)  # pyright: ignore[reportArgumentType] - transformers hides that `to` is a method
        scorer = ReencodingScorer(value_model, batch_size=config.batch_size)
    if config.reference is not None and any(isinstance(d, LogRatioBeam) for d in decodings_of(config)):
        require_same_tokens(tokenizer, config.reference, "reference")
        reference = load_policy(config.reference, dtype=dtype)
        reference.to(device)  # pyright: ignore[reportArgumentType] - as above
        log_ratio = LogRatioScorer(policy, reference, min_probability=config.min_probability)
    template = named_template(config.template, tokenizer, instruction=config.instruction)
    problems = read_problems(config.problems, limit=config.limit, template=template)
    require_distinct_ids(problems)
    prompts = [tuple(encode_prompt(problem.prompt, tokenizer)) for problem in problems]
    return Answering(engine, value_model, scorer, log_ratio, tokenizer, problems, prompts, config)


def _write_values(a: Answering, path: Path) -> None:
    """V along the first sample of each of the first problems."""
    assert a.value_model is not None  # checked when the config was read
    n = min(a.config.n_solutions, len(a.problems))
    samples = a.engine.sample(a.prompts[:n], whole_answers(a.config), 1)
    solutions = [
        read_solution(
            a.value_model,
            a.tokenizer,
            prompt,
            sample,
            record_of(a, problem, "sample", sample, None),
            delimiters=a.config.step_delimiters,
        )
        for problem, prompt, (sample,) in zip(a.problems, a.prompts, samples, strict=False)
    ]
    write_solutions(path, solutions)


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
