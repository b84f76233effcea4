"""`posttrain eval run`: answer problems with one policy, decoded in several ways, and write one record per answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from tqdm.auto import tqdm

from posttrain.config_fields import plain
from posttrain.data.problems import find_data, read_problems, require_distinct_ids
from posttrain.evaluation.answering import answer, graded, single_answer
from posttrain.evaluation.completing import as_completion
from posttrain.evaluation.decoding import (
    Chosen,
    Decoding,
    LogRatioBeam,
    Sampled,
    Stepwise,
    ValueRerank,
    methods_of,
)
from posttrain.evaluation.eval_config import EvalConfig, decodings_of, name_of, output_of
from posttrain.evaluation.ledger import Ledger, expected_keys, keyed, problem_key
from posttrain.evaluation.loading import load_answering, prompt_template, protocol_of
from posttrain.evaluation.networks import Answering, Chunk
from posttrain.evaluation.outcome import disagreements, summary, write_outcome
from posttrain.evaluation.search_options import SearchOptions
from posttrain.evaluation.shots import with_shots
from posttrain.evaluation.solutions import read_solution, write_solutions
from posttrain.evaluation.statistics import wilson_interval
from posttrain.evaluation.tasks import task_source
from posttrain.provenance import hash_data, weights_sha256, write_run_card
from posttrain.schema import AnswerRecord, Grade, Problem

CARDS = "evaluations"  # beside the answers: one folder per policy's name


@dataclass(frozen=True, slots=True)
class Asked:
    """The problems as this protocol puts them, with the key of each under each decoding."""

    problems: Sequence[Problem]
    keys: dict[str, dict[str, str]]  # decoding as written -> task_id -> key


def evaluate(config: EvalConfig) -> Path:
    """`answer_problems`, and the file that was written."""
    answer_problems(config)
    return output_of(config)


def answer_problems(config: EvalConfig) -> list[AnswerRecord]:
    """Answer every problem by every decoding of `config` and write the records; returns those of this evaluation.

    A run that was stopped goes on with the chunks that lack records; several processes may run it at once. Raises
    FileExistsError where the file has other answers under the same name and method.
    """
    decodings = dict(zip(config.decoding, decodings_of(config), strict=True))
    asked = _ask(config)
    if config.show_prompt:
        print(asked.problems[0].prompt)
        return []
    ledger = Ledger(output_of(config), name=name_of(config))
    ledger.refresh()
    _require_own(config, ledger, asked, decodings)
    problems = asked.problems[: config.limit]
    card = ledger.path.parent / CARDS / name_of(config)
    write_run_card(card, _card(config), _data_sha256(config))
    seconds, found = {}, []
    with ExitStack() as stack:
        load = cache(lambda: stack.enter_context(load_answering(config, problems)))  # when the first chunk needs it
        for text, decoding in decodings.items():
            started = time.perf_counter()
            records = _answer_all(config, load, ledger, problems, asked.keys[text], text, decoding)
            seconds[text] = time.perf_counter() - started
            found += records
            for line in summary(records):
                print(f"{line}   [{text}: {seconds[text]:.0f} s]")
            for line in disagreements(records):
                print(line)
        write_outcome(card, ledger.records.values(), seconds=seconds)
        if config.values_output is not None:
            _write_values(load(), problems, Path(config.values_output))
    return found


def _ask(config: EvalConfig) -> Asked:
    """All problems of the source, `limit` or not: their keys tell whose answers are on file."""
    protocol = protocol_of(config)
    source, _ = task_source(config.problems)
    template = prompt_template(config, protocol)
    problems = read_problems(source, limit=None, template=template, reader=config.reader)
    if protocol.shots is not None:
        problems = with_shots(problems, protocol.shots, template)
    require_distinct_ids(problems)
    if not problems[: config.limit]:
        raise ValueError(
            f"{config.problems} has {len(problems)} problems and limit is {config.limit}: nothing to answer"
        )
    paths = {name: getattr(config, name) for name in ("model", "value_model", "reference")}
    hashes = {name: path and (weights_sha256(Path(path)) or path) for name, path in paths.items()}
    hashes |= {"model": f"{config.model} at {config.url}"} if config.url is not None else {}
    keys = {}
    for text, decoding in zip(config.decoding, decodings_of(config), strict=True):
        settings = {"decoding": text, "protocol": protocol.hash(), **_settings(config, decoding, hashes)}
        keys[text] = {problem.task_id: problem_key(problem, settings) for problem in problems}
    return Asked([protocol.regraded(problem) for problem in problems], keys)


def _settings(config: EvalConfig, decoding: Decoding, hashes: Mapping[str, str | None]) -> dict[str, object]:
    """What the answers of one decoding depend on: of the config, and of the networks, which `hashes` tells apart."""
    names = ["engine", "dtype", "seed", "max_new_tokens"]
    # Named only where they are in use: answers of versions without them are still found.
    names += ["trees"] if config.trees else []
    names += ["guidance", "unconditional"] if config.guidance != 1 else []
    names += ["top_k"] if config.top_k and isinstance(decoding, Sampled | Chosen | Stepwise) else []
    networks = ["model"]
    match decoding:
        case Sampled():
            names += ["temperature", "top_p"]
            networks += ["value_model"]
        case Chosen() | Stepwise():
            names += ["temperature", "top_p", *(option.name for option in fields(SearchOptions))]
            networks += ["value_model"]
        case ValueRerank():
            names += ["value_weight", "min_probability"]
            networks += ["value_model"]
        case LogRatioBeam():
            names += ["min_probability"]
            networks += ["reference"]
    return {**{name: getattr(config, name) for name in names}, **{name: hashes[name] for name in networks}}


def _require_own(config: EvalConfig, ledger: Ledger, asked: Asked, decodings: dict[str, Decoding]) -> None:
    has_value = config.value_model is not None
    methods = {m[:2] for decoding in decodings.values() for m in methods_of(decoding, has_value=has_value)}
    keys = {
        key
        for text, decoding in decodings.items()
        for own in asked.keys[text].values()
        for key in expected_keys(own, decoding, has_value=has_value)
    }
    ledger.require(methods, keys)


def _answer_all(
    config: EvalConfig,
    load: Callable[[], Answering],
    ledger: Ledger,
    problems: Sequence[Problem],
    keys: dict[str, str],
    text: str,
    decoding: Decoding,
) -> list[AnswerRecord]:
    """The records of one decoding, those on file and those answered now, in the order of the problems."""
    has_value = config.value_model is not None
    wanted = {p.task_id: expected_keys(keys[p.task_id], decoding, has_value=has_value) for p in problems}
    size = config.problems_per_chunk
    chunks = [problems[start : start + size] for start in range(0, len(problems), size)]
    with _progress(config, text, len(problems)) as bar:
        for is_waiting in (False, True):  # first what nobody holds, then what others have left undone
            for number, chunk in enumerate(chunks):
                chunk_keys = set().union(*(wanted[problem.task_id] for problem in chunk))
                with ledger.claim(f"{text}-{number}", is_waiting=is_waiting) as is_ours:
                    ledger.refresh()
                    if is_ours and not ledger.has(chunk_keys):
                        ledger.add(keyed(answer(load(), Chunk(number * size, chunk), decoding), keys))
                _show(bar, ledger, wanted)
    # The order of an unbroken run of one process, whoever wrote which chunk when.
    order = {key: place for place, own in enumerate(wanted.values()) for key in own}
    found = [(order[key], record) for key, record in ledger.records.items() if key in order]
    return [record for _, record in sorted(found, key=lambda pair: pair[0])]


@contextmanager
def _progress(config: EvalConfig, text: str, n_problems: int) -> Iterator[tqdm]:
    with tqdm(total=n_problems, unit="problem", desc=f"{name_of(config)} {text}", disable=None) as bar:
        yield bar


def _show(bar: tqdm, ledger: Ledger, wanted: dict[str, set[str]]) -> None:
    done = [own for own in wanted.values() if ledger.has(own)]
    bar.n = len(done)
    records = [ledger.records[key] for own in done for key in own]
    if any(record.grade is not Grade.UNGRADED for record in records):
        at = wilson_interval(sum(record.grade is Grade.CORRECT for record in records), len(records))
        bar.set_postfix_str(f"{at.estimate:.1%} [{at.low:.1%}, {at.high:.1%}]")
    bar.refresh()


def _data_sha256(config: EvalConfig) -> dict[str, str]:
    """Of the problems' file, under the name of the source: where it lies differs from machine to machine."""
    source, _ = task_source(config.problems)
    found = str(find_data(source))
    hashes = hash_data(found)
    return {source: hashes[found]} if found in hashes else {}


def _card(config: EvalConfig) -> dict[str, object]:
    protocol = protocol_of(config)
    return {**plain(asdict(config)), "protocol": {**asdict(protocol), "hash": protocol.hash()}}


def _write_values(a: Answering, problems: Sequence[Problem], path: Path) -> None:
    """V along the first sample of each of the first problems."""
    assert a.value_model is not None and a.token_access is not None  # checked when the config was read
    shown, tokenizer = problems[: a.config.n_solutions], a.tokens.tokenizer
    prompts = a.tokens.prompts(shown)
    samples = [sample for (sample,) in a.tokens.engine.sample(prompts, a.sampling(), 1)]
    completions = [as_completion(sample, tokenizer) for sample in samples]
    answers = [single_answer(a, problem, "sample", c, None) for problem, c in zip(shown, completions, strict=True)]
    solutions = [
        read_solution(a.value_model, tokenizer, prompt, sample, record, delimiters=a.config.step_delimiters)
        for prompt, sample, record in zip(prompts, samples, graded(a, answers), strict=True)
    ]
    write_solutions(path, solutions)
