"""`posttrain kto`: the peer baseline, trl's KTO on single answers that are called good or bad by their reward."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import KTOConfig  # pyright: ignore[reportPrivateImportUsage] - trl's public path, without __all__

from posttrain.data.answers import is_trajectory
from posttrain.data.audit import prepare
from posttrain.data.preferences import parse_unpaired_preference, total_reward
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import RowsError, read_rows
from posttrain.data.tokenizer_card import require_same_tokens
from posttrain.pretrained import load_tokenizer
from posttrain.provenance import write_run_card
from posttrain.schema import EncodedTrajectory, TrajectoryRow
from posttrain.training.dpo import answer_start, load_policy_and_reference
from posttrain.training.metrics_callback import MetricsFile
from posttrain.training.run_config import RowsConfig
from posttrain.training.trl_trainers import KtoTrainer
from posttrain.training.without_accelerator import choose_cpu

Answer = dict[str, list[int] | bool]  # prompt_ids, completion_ids, label


@dataclass(kw_only=True)
class KtoBaselineConfig(RowsConfig, KTOConfig):
    """Train a causal LM with KTO against its frozen starting point (arXiv 2402.01306), through trl's KTOTrainer."""

    reference: str | None = field(
        default=None, metadata={"help": "Frozen reference policy; default: the model.", "group": "models"}
    )
    train_data: list[str] = field(
        metadata={
            "help": "JSONL or Parquet files, or Hub ids: trajectory rows, or unpaired preference rows (prompt, "
            "completion, label).",
            "group": "data",
        },
    )
    min_reward: float = field(
        default=1.0,
        metadata={"help": "A trajectory row of at least this reward is a good answer.", "group": "data"},
    )

    def __post_init__(self) -> None:
        choose_cpu(self)
        super().__post_init__()


def train_kto(config: KtoBaselineConfig) -> Path:
    """Train and return the run folder.

    It is a Hugging Face model folder with its tokenizer, beside run.json, metrics.jsonl and the checkpoints.
    """
    tokenizer = load_tokenizer(config.model)
    if config.reference is not None:
        require_same_tokens(tokenizer, config.reference, "reference")
    answers, data_sha256 = read_labelled(config, tokenizer)
    trainer = build_kto_trainer(config, answers, tokenizer)
    if trainer.is_world_process_zero():
        write_run_card(Path(config.output_dir), config.to_dict(), data_sha256)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()
    return Path(config.output_dir)


def read_labelled(
    config: KtoBaselineConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Answer], dict[str, str]]:
    """Read, encode, label and shuffle the answers of all sources and print what became of them; also source -> sha256.

    trl goes through them in this order, since it takes a prompt's mismatched answer from the same batch.
    Raises RowsError when all answers are good or all are bad.
    """
    answers: list[Answer] = []
    data_sha256: dict[str, str] = {}
    for source in config.train_data:
        read = read_rows(source, parse_labelled, on_bad_row=config.on_bad_row)
        prepared = prepare(
            read,
            tokenizer,
            max_length=config.max_length,
            step_delimiters=(),
            max_dropped_fraction=config.max_dropped_fraction,
        )
        labelled = encode_labelled(read.rows, prepared.encoded, min_reward=config.min_reward)
        answers += labelled
        data_sha256[source] = read.sha256
        if config.should_log:
            print(f"{prepared.audit.table()}\n  good answers: {sum(bool(row['label']) for row in labelled):,}")
    n_good = sum(bool(row["label"]) for row in answers)
    if n_good in (0, len(answers)):
        raise RowsError(
            f"{', '.join(config.train_data)}: {n_good} of {len(answers)} answers have a reward of "
            f"min_reward={config.min_reward} or more; KTO needs good and bad ones"
        )
    random.Random(config.seed).shuffle(answers)
    return answers, data_sha256


def parse_labelled(obj: object, where: str) -> TrajectoryRow:
    """A trajectory row, or an unpaired preference row with reward 1 or 0."""
    return parse_trajectory(obj, where) if is_trajectory(obj) else parse_unpaired_preference(obj, where)


def encode_labelled(
    rows: Sequence[TrajectoryRow], encoded: Sequence[EncodedTrajectory], *, min_reward: float
) -> list[Answer]:
    """The encoded rows as the token ids that were recorded or encoded, and whether they earned `min_reward`.

    Raises RowError for an answer with several stretches of actions.
    """
    answers: list[Answer] = []
    for item in encoded:
        row = rows[item.row_id]
        start = answer_start(row, item)
        ids = list(item.input_ids)
        answers.append(
            {"prompt_ids": ids[:start], "completion_ids": ids[start:], "label": total_reward(row) >= min_reward}
        )
    return answers


def build_kto_trainer(
    config: KtoBaselineConfig, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerBase
) -> KtoTrainer:
    """trl's trainer on encoded answers, with the reference in memory and dropout off in both models."""
    policy, reference = load_policy_and_reference(config.model, config.reference, dtype=getattr(torch, config.dtype))
    return KtoTrainer(
        model=policy,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list(list(answers)),
        processing_class=tokenizer,
        callbacks=[MetricsFile()],
    )
