"""Collecting graded trajectories: k sampled answers to each problem, as rows that the trainers read."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from posttrain import __version__
from posttrain.data.encode import encode_prompt
from posttrain.data.problems import TemplateName, named_template, read_problems, require_distinct_ids
from posttrain.data.tokenizer_card import tokenizer_card
from posttrain.pretrained import load_tokenizer
from posttrain.provenance import weights_sha256
from posttrain.rewards.grade import grade_all
from posttrain.rewards.pool import GradingPool
from posttrain.rollout.engines import EngineName, load_engine, longest_sequence
from posttrain.rollout.row_file import RowFile
from posttrain.rollout.shards import Shard
from posttrain.rollout.tally import Tally
from posttrain.sampling import Sample, SamplingEngine, SamplingParams
from posttrain.schema import Grade, Problem, TrajectoryRow

# Keys that may differ when a run goes on: they say where, how far and how fast, not what is sampled.
_MAY_CHANGE = frozenset({"output", "limit", "batch_size", "problems_per_chunk"})


def _option(help: str, default: object, group: str = "sampling") -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """Sample answers to problems, grade them, and write them as trajectory rows. Run again to go on after a stop."""

    model: str = field(metadata={"help": "Folder or Hub id of the policy."})
    problems: str = field(
        metadata={"help": "Problems: .jsonl, .parquet, a Hub id or reasoning_gym:<dataset>?size=..&seed=.."}
    )
    output: Path = field(
        metadata={"help": "JSON lines file to write or to go on with; a .summary.json is put beside it."}
    )
    engine: EngineName = _option("What runs the policy.", "transformers", "engine")
    dtype: Literal["float32", "bfloat16"] = _option("Arithmetic of the policy.", "bfloat16", "engine")
    device: str = _option(
        "Of the transformers engine: cpu, cuda, ...; auto takes CUDA where there is one.", "auto", "engine"
    )
    batch_size: int = _option("Rows that the transformers engine decodes at a time.", 64, "engine")
    problems_per_chunk: int = _option("Problems between two writes; a stopped run loses at most these.", 64, "engine")
    samples_per_problem: int = _option("Answers to each problem (k).", 4)
    temperature: float = _option("0 is greedy.", 1.0)
    top_p: float = _option("Cut to the likeliest tokens with this mass; 1 is off.", 1.0)
    top_k: int = _option("Cut to this many tokens; 0 is off.", 0)
    max_new_tokens: int = _option("Token budget of an answer.", 512)
    stop: tuple[str, ...] = _option("Strings that end an answer; they are kept in it.", ())
    seed: int = _option("Each answer draws from a stream of its own, set by this, the problem's id and its place.", 0)
    limit: int | None = _option("Take the first so many problems.", None, "problems")
    shard: str | None = _option(
        "index/count, such as 0/2: take every count-th chunk of problems, and write rows-0-of-2.jsonl for an output "
        "rows.jsonl; `posttrain merge` joins the shards.",
        None,
        "problems",
    )
    template: TemplateName = _option("How a question becomes a prompt.", "plain", "problems")
    instruction: str = _option("System message of the chat template.", "", "problems")

    def __post_init__(self) -> None:
        for name in ("batch_size", "problems_per_chunk", "samples_per_problem"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, needs at least 1")
        if self.shard is not None:
            Shard.parse(self.shard)

    def sampling_params(self) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
        )


def collect(config: CollectConfig) -> Path:
    """Sample, grade and write `config.samples_per_problem` rows for each problem; returns the rows' file.

    Rows are appended a chunk of problems at a time. A run that was stopped goes on after its last whole chunk and
    ends with the rows, byte for byte, of a run that was not (same machine and versions). Raises ValueError when the
    file at `output` is of another model, other problems or other sampling parameters. With `config.shard` only the
    problems of that shard are taken, and the file is that shard's.
    """
    params = config.sampling_params()
    tokenizer = load_tokenizer(config.model)
    template = named_template(config.template, tokenizer, instruction=config.instruction)
    problems = read_problems(config.problems, limit=config.limit, template=template)
    require_distinct_ids(problems)
    run = {**_shown(config, but=_MAY_CHANGE), "model_sha256": weights_sha256(Path(config.model))}
    n_of_all_shards, path = len(problems), config.output
    if config.shard is not None:
        shard = Shard.parse(config.shard)
        run["problems_per_chunk"] = config.problems_per_chunk  # of another size, chunks would be dealt otherwise
        problems, path = shard.of(problems, chunk_size=config.problems_per_chunk), shard.path(config.output)
    tally = Tally()
    file = RowFile(path, n_per_problem=config.samples_per_problem)
    file.claim(run)
    n_done = file.resume(problems, problems_per_chunk=config.problems_per_chunk, count=tally.add)
    n_tokens_before, start = tally.n_tokens, time.monotonic()
    if n_done < len(problems):
        engine = load_engine(
            config.model,
            tokenizer,
            engine=config.engine,
            dtype=config.dtype,
            device=config.device,
            batch_size=config.batch_size,
            max_tokens=lambda: longest_sequence(problems, tokenizer, config.max_new_tokens),
        )
        with (
            GradingPool(n_workers=1) as pool,
            tqdm(total=len(problems), initial=n_done, unit="problem", desc="collect") as bar,
        ):
            for first in range(n_done, len(problems), config.problems_per_chunk):
                chunk = problems[first : first + config.problems_per_chunk]
                rows = collect_rows(engine, tokenizer, chunk, params, config.samples_per_problem, pool=pool)
                file.append(rows)
                for place, problem in enumerate(chunk):
                    tally.add(problem, rows[place * config.samples_per_problem :][: config.samples_per_problem])
                bar.set_postfix_str(tally.progress())
                bar.update(len(chunk))
    seconds = time.monotonic() - start
    last_run = {
        "n_problems_found_done": n_done,
        "seconds": seconds,  # start-up of the engine included
        "tokens_per_second": (tally.n_tokens - n_tokens_before) / seconds,
    }
    counts = {**tally.to_json(), "n_problems_of_all_shards": n_of_all_shards, "last_run": last_run}
    file.write_summary({"is_complete": True, "run": run, **counts, **_origin(config, tokenizer)})
    print(f"{path}: {tally.n_rows:,} answers to {tally.n_problems:,} problems, {tally.progress()}")
    return path


def collect_rows(
    engine: SamplingEngine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    params: SamplingParams,
    n: int,
    *,
    pool: GradingPool,
) -> list[TrajectoryRow]:
    """n graded answers to each problem, in order: reward 1 for CORRECT, else 0.

    An answer cut by its budget keeps finish_reason length and gets no EOS; having no last line `#### N`, it normally
    earns nothing. Samples depend on the seed and the problem's id, not on the other problems.
    """
    prompts = [encode_prompt(problem.prompt, tokenizer) for problem in problems]
    streams = [stream_of(problem.task_id) for problem in problems]
    found = engine.sample(prompts, params, n, streams=streams)
    drawn = [
        (problem, prompt, sample, _completion(tokenizer, sample))
        for problem, prompt, samples in zip(problems, prompts, found, strict=True)
        for sample in samples
    ]
    grades = grade_all([(problem, completion) for problem, _, _, completion in drawn], pool)
    return [_row(*one, grade) for one, grade in zip(drawn, grades, strict=True)]


def stream_of(task_id: str) -> int:
    """The random stream of a problem: 64 bits of a hash of its id."""
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:8], "little")


def _completion(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> str:
    ids = list(sample.token_ids)
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _row(problem: Problem, prompt: Sequence[int], sample: Sample, completion: str, grade: Grade) -> TrajectoryRow:
    return TrajectoryRow(
        where=problem.where,
        task_id=problem.task_id,
        prompt=problem.prompt,
        completion=completion,
        input_ids=(*prompt, *sample.token_ids),
        action_spans=((len(prompt), len(prompt) + len(sample.token_ids)),),
        reward=1.0 if grade is Grade.CORRECT else 0.0,
        step_rewards=(),
        finish_reason=sample.finish_reason,
        behavior_logp=sample.logp,
        ref_logp=None,
    )


def _origin(config: CollectConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """What made the rows: configuration, tokenizer and versions."""
    versions = {"posttrain": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"config": _shown(config), "tokenizer": tokenizer_card(tokenizer), **versions}


def _shown(config: CollectConfig, but: frozenset[str] = frozenset()) -> dict[str, object]:
    """The config as JSON holds it."""
    values = {name: value for name, value in asdict(config).items() if name not in but}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
