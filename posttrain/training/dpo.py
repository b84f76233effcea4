"""`posttrain dpo`: the peer baseline, trl's DPO on pairs made from rewarded trajectories or on preference rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig  # pyright: ignore[reportPrivateImportUsage] - trl's public path, without __all__

from posttrain.data.answers import as_trajectory, is_trajectory
from posttrain.data.audit import prepare
from posttrain.data.fields import RowError
from posttrain.data.preferences import trajectory_pairs
from posttrain.data.rows import parse_preference, parse_trajectory
from posttrain.data.sources import Rows, RowsError, read_rows
from posttrain.data.tokenizer_card import require_same_tokens
from posttrain.models.actor_critic import require_same_vocabulary
from posttrain.models.policy import load_policy, load_reference
from posttrain.pretrained import load_tokenizer
from posttrain.provenance import hash_data, write_run_card
from posttrain.schema import EncodedTrajectory, TrajectoryRow
from posttrain.training.metrics_callback import MetricsFile
from posttrain.training.reference_samples import read_reference_samples
from posttrain.training.run_config import RowsConfig
from posttrain.training.trl_trainers import DpoTrainer
from posttrain.training.without_accelerator import choose_cpu

Pair = dict[str, list[int]]  # prompt_ids, chosen_ids, rejected_ids


@dataclass(kw_only=True)
class DpoBaselineConfig(RowsConfig, DPOConfig):
    """Train a causal LM with DPO against its frozen starting point (arXiv 2305.18290), through trl's DPOTrainer."""

    reference: str | None = field(
        default=None, metadata={"help": "Frozen reference policy; default: the model.", "group": "models"}
    )
    train_data: list[str] = field(
        metadata={
            "help": "JSONL or Parquet files, or Hub ids: trajectory rows, paired within each task_id by reward, or "
            "preference rows (prompt, chosen, rejected).",
            "group": "data",
        },
    )
    track_reference_samples: str | None = field(
        default=None,
        metadata={
            "help": "Rows that collect sampled from the reference at temperature 1; their implicit reward is logged "
            "beside that of the pairs.",
            "group": "data",
        },
    )
    max_pairs_per_task: int = field(
        default=6,  # arXiv 2412.16145, A.1, for the 1.5B model
        metadata={"help": "Pairs drawn per task_id from better times worse answers.", "group": "data"},
    )

    def __post_init__(self) -> None:
        choose_cpu(self)
        super().__post_init__()
        if self.max_pairs_per_task < 1:
            raise ValueError(f"max_pairs_per_task is {self.max_pairs_per_task}, needs at least 1")
        if self.track_reference_samples is not None and self.sync_ref_model:
            raise ValueError(
                "sync_ref_model moves the reference while track_reference_samples follows samples of the one that the "
                "run starts with: leave one of them out"
            )


def train_dpo(config: DpoBaselineConfig) -> Path:
    """Train and return the run folder.

    It is a Hugging Face model folder with its tokenizer, beside run.json, metrics.jsonl and the checkpoints.
    """
    tokenizer = load_tokenizer(config.model)
    if config.reference is not None:
        require_same_tokens(tokenizer, config.reference, "reference")
    pairs, data_sha256 = read_pairs(config, tokenizer)
    trainer = build_dpo_trainer(config, pairs, tokenizer)
    if config.track_reference_samples is not None:
        trainer.reference_samples = read_reference_samples(
            config.track_reference_samples,
            tokenizer,
            beta=config.beta,
            max_length=config.max_length,
            batch_size=config.per_device_train_batch_size,
        )
        data_sha256 |= hash_data(config.track_reference_samples)
    if trainer.is_world_process_zero():
        write_run_card(Path(config.output_dir), config.to_dict(), data_sha256)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()
    return Path(config.output_dir)


def read_pairs(config: DpoBaselineConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Pair], dict[str, str]]:
    """Read, encode and pair the answers of all sources and print what became of them; also source -> sha256.

    Raises RowsError when no pair can be made.
    """
    rng = random.Random(config.seed)
    pairs: list[Pair] = []
    data_sha256: dict[str, str] = {}
    for source in config.train_data:
        parsed = read_rows(source, parse_answers, on_bad_row=config.on_bad_row)
        answers = Rows(
            parsed.source,
            tuple(answer for answers in parsed.rows for answer in answers),
            parsed.n_read,
            parsed.n_bad,
            parsed.sha256,
        )
        prepared = prepare(
            answers,
            tokenizer,
            max_length=config.max_length,
            step_delimiters=(),
            max_dropped_fraction=config.max_dropped_fraction,
        )
        made = encode_pairs(answers.rows, prepared.encoded, max_pairs=config.max_pairs_per_task, rng=rng)
        pairs += made
        data_sha256[source] = parsed.sha256
        if config.should_log:
            print(f"{prepared.audit.table()}\n  pairs made: {len(made):,}")
    if not pairs:
        raise RowsError(
            f"{', '.join(config.train_data)}: no pair of a better and a worse answer to one task: "
            "are there several answers per task_id, with different rewards?"
        )
    return pairs, data_sha256


def parse_answers(obj: object, where: str) -> tuple[TrajectoryRow, ...]:
    """A trajectory row; or the two answers of a preference row as a task of their own, with rewards 1 and 0."""
    if is_trajectory(obj):
        return (parse_trajectory(obj, where),)
    row = parse_preference(obj, where)
    return (
        as_trajectory(row.prompt, row.chosen, where=where, task_id=where, reward=1.0),
        as_trajectory(row.prompt, row.rejected, where=where, task_id=where, reward=0.0),
    )


def encode_pairs(
    rows: Sequence[TrajectoryRow], encoded: Sequence[EncodedTrajectory], *, max_pairs: int, rng: random.Random
) -> list[Pair]:
    """Pairs among the encoded rows, as the token ids that were recorded or encoded for each answer.

    Raises RowError for an answer with several stretches of actions, and for two answers to different prompts.
    """
    by_row = {rows[item.row_id]: item for item in encoded}
    drawn = trajectory_pairs(list(by_row), max_pairs=max_pairs, rng=rng)
    return [_pair(better, by_row[better], worse, by_row[worse]) for better, worse in drawn]


def build_dpo_trainer(
    config: DpoBaselineConfig, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase
) -> DpoTrainer:
    """trl's trainer on encoded pairs, with the reference in memory and dropout off in both models."""
    policy, reference = load_policy_and_reference(config.model, config.reference, dtype=getattr(torch, config.dtype))
    return DpoTrainer(
        model=policy,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=tokenizer,
        callbacks=[MetricsFile()],
    )


def load_policy_and_reference(
    model: str, reference: str | None, *, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The policy and its frozen reference, by default its own start. Raises ValueError for two vocabularies."""
    policy = load_policy(model, dtype=dtype)
    frozen = load_reference(reference or model, dtype=dtype)
    require_same_vocabulary(policy, frozen, "reference", "it must be the model that the policy started from")
    return policy, frozen


def _pair(better: TrajectoryRow, chosen: EncodedTrajectory, worse: TrajectoryRow, rejected: EncodedTrajectory) -> Pair:
    chosen_start, rejected_start = answer_start(better, chosen), answer_start(worse, rejected)
    prompt = chosen.input_ids[:chosen_start]
    if rejected.input_ids[:rejected_start] != prompt:
        fault = f"has the task_id {better.task_id!r} of {better.where}, but other tokens before the answer"
        raise RowError([f"{worse.where}: prompt: {fault}; expected one prompt per task"])
    return {
        "prompt_ids": list(prompt),
        "chosen_ids": list(chosen.input_ids[chosen_start:]),
        "rejected_ids": list(rejected.input_ids[rejected_start:]),
    }


def answer_start(row: TrajectoryRow, encoded: EncodedTrajectory) -> int:
    """Where the answer begins, an index into input_ids. Raises RowError when it is not one stretch up to the end."""
    start = encoded.is_action.index(True)
    if not all(encoded.is_action[start:]):
        fault = "has tokens after or between its actions; this baseline takes answers of one stretch"
        raise RowError([f"{row.where}: action_spans: {fault}"])
    return start
