"""`posttrain sft`: supervised fine-tuning on completions, and rejection sampling as fine-tuning on the good ones."""

from __future__ import annotations

import copy
import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage] - trl's public path, without __all__

from posttrain.data.answers import as_trajectory, is_trajectory
from posttrain.data.audit import prepare
from posttrain.data.preferences import total_reward
from posttrain.data.rows import parse_completion, parse_trajectory
from posttrain.data.sources import Rows, RowsError, read_rows
from posttrain.models.policy import load_policy
from posttrain.pretrained import load_tokenizer
from posttrain.provenance import write_run_card
from posttrain.schema import EncodedTrajectory, TrajectoryRow
from posttrain.training.metrics_callback import MetricsFile
from posttrain.training.run_config import RowsConfig
from posttrain.training.trl_trainers import SftTrainer
from posttrain.training.without_accelerator import choose_cpu

NO_LOSS = -100  # the label that transformers and trl leave out of the loss

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SftConfig(RowsConfig, SFTConfig):
    """Fine-tune a causal LM on the completions of prompt/completion rows or of trajectory rows, prompts excluded."""

    train_data: list[str] = field(
        metadata={
            "help": "JSONL or Parquet files, or Hub ids: prompt/completion rows, or trajectory rows, whose recorded "
            "token ids are trained on as they are.",
            "group": "data",
        },
    )
    min_reward: float | None = field(
        default=None,
        metadata={"help": "Keep trajectory rows of at least this reward: rejection sampling.", "group": "data"},
    )

    def __post_init__(self) -> None:
        choose_cpu(self)
        super().__post_init__()


def train_sft(config: SftConfig) -> Path:
    """Train and return the run folder.

    It is a Hugging Face model folder with its tokenizer, beside run.json, metrics.jsonl and the checkpoints.
    """
    tokenizer = load_tokenizer(config.model)
    encoded, data_sha256 = read_demonstrations(config, tokenizer)
    trainer = build_sft_trainer(config, encoded, tokenizer)
    if trainer.is_world_process_zero():
        write_run_card(Path(config.output_dir), config.to_dict(), data_sha256)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()
    return Path(config.output_dir)


def read_demonstrations(
    config: SftConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedTrajectory], dict[str, str]]:
    """Read, filter and encode all sources and print what became of their rows; also source -> sha256."""
    encoded: list[EncodedTrajectory] = []
    data_sha256: dict[str, str] = {}
    for source in config.train_data:
        rows = read_rows(source, parse_demonstration, on_bad_row=config.on_bad_row)
        prepared = prepare(
            rows if config.min_reward is None else reject(rows, min_reward=config.min_reward),
            tokenizer,
            max_length=config.max_length,
            step_delimiters=(),
            max_dropped_fraction=config.max_dropped_fraction,
        )
        encoded += prepared.encoded
        data_sha256[source] = prepared.audit.sha256
        if config.should_log:
            print(prepared.audit.table())
    return encoded, data_sha256


def parse_demonstration(obj: object, where: str) -> TrajectoryRow:
    """A trajectory row, or a prompt/completion row as a trajectory without reward whose completion ends by itself."""
    if is_trajectory(obj):
        return parse_trajectory(obj, where)
    row = parse_completion(obj, where)
    return as_trajectory(row.prompt, row.completion, where=where, task_id=where, reward=None)


def reject(rows: Rows[TrajectoryRow], *, min_reward: float) -> Rows[TrajectoryRow]:
    """Only the rows whose summed reward is at least `min_reward`.

    Raises RowsError when a row has no reward, or none is good enough.
    """
    unrewarded = [row for row in rows.rows if row.reward is None and not row.step_rewards]
    if unrewarded:
        raise RowsError(
            f"{unrewarded[0].where}: has no reward, but min_reward={min_reward} was asked for: "
            "use trajectory rows, or leave min_reward out"
        )
    kept = tuple(row for row in rows.rows if total_reward(row) >= min_reward)
    if not kept:
        best = max(total_reward(row) for row in rows.rows)
        raise RowsError(f"{rows.source}: no row has a reward of min_reward={min_reward} or more; the best has {best}")
    logger.info("%s: %d of %d rows have a reward of at least %g", rows.source, len(kept), len(rows.rows), min_reward)
    return dataclasses.replace(rows, rows=kept)


def build_sft_trainer(
    config: SftConfig, encoded: list[EncodedTrajectory], tokenizer: PreTrainedTokenizerBase
) -> SftTrainer:
    """trl's trainer on the encoded rows; tokens that the policy did not choose carry no loss."""
    arguments = copy.copy(config)
    if not config.packing:  # the rows are encoded and short enough: trl has nothing left to prepare
        arguments.dataset_kwargs = {"skip_prepare_dataset": True}
    return SftTrainer(
        model=load_policy(config.model, dtype=getattr(torch, config.dtype)),
        args=arguments,
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [list(row.input_ids) for row in encoded],
                "labels": [_labels(row) for row in encoded],
            }
        ),
        processing_class=tokenizer,
        callbacks=[MetricsFile()],
    )


def _labels(row: EncodedTrajectory) -> list[int]:
    return [token if is_action else NO_LOSS for token, is_action in zip(row.input_ids, row.is_action, strict=True)]
