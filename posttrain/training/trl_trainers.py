"""trl's SFT, DPO and KTO trainers with safe checkpoints, trained on token ids that our data layer has made."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import DPOTrainer, KTOTrainer, SFTTrainer  # pyright: ignore[reportPrivateImportUsage] - public, no __all__

from posttrain.training.reference_samples import ReferenceSamples
from posttrain.training.safe_checkpointing import SafeCheckpointing


class TrlAverages(SafeCheckpointing):
    """Carries the averages that trl's trainers keep between two logs, and their token count, across a resume."""

    _metrics: dict[str, dict[str, list[float]]]  # "train" or "eval" -> name -> one number per micro-batch
    _total_train_tokens: int

    def progress(self) -> dict[str, Any]:
        own = {"averages": dict(self._metrics["train"]), "total_train_tokens": self._total_train_tokens}
        return {**super().progress(), **own}

    def restore_progress(self, progress: dict[str, Any]) -> None:
        super().restore_progress(progress)
        self._metrics["train"].update(progress["averages"])
        self._total_train_tokens = progress["total_train_tokens"]


class SftTrainer(TrlAverages, SFTTrainer):
    """trl's SFTTrainer; takes rows of `input_ids` and `labels`."""


class DpoTrainer(TrlAverages, DPOTrainer):
    """trl's DPOTrainer on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`.

    trl 1.16 always tokenises text, which would train on other actions than were sampled; its collator and its loss
    take ids as they are.
    """

    reference_samples: ReferenceSamples | None = None  # whose implicit rewards are logged beside those of the pairs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the implicit rewards of the reference's samples to a training log."""
        if "loss" in logs and self.reference_samples is not None:
            logs = {**logs, **self.reference_samples.measure(self.model_wrapped, self.ref_model)}
        super().log(logs, start_time)

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        _require_columns(dataset, dataset_name, {"prompt_ids", "chosen_ids", "rejected_ids"})
        return dataset


class KtoTrainer(TrlAverages, KTOTrainer):
    """trl's KTOTrainer on rows of `prompt_ids`, `completion_ids` and `label`, as the DpoTrainer above."""

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        _require_columns(dataset, dataset_name, {"prompt_ids", "completion_ids", "label"})
        if not self.calculate_KL:
            return dataset
        return dataset.map(_mismatch, batched=True, batch_size=args.per_device_train_batch_size)


def _mismatch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Each prompt of a batch with the answer to the prompt before it: KTO's estimate of KL(π‖π_ref)."""
    answers = batch["completion_ids"]
    return {**batch, "KL_completion_ids": [*answers[-1:], *answers[:-1]]}


def _require_columns(dataset: Dataset, name: str, expected: set[str]) -> None:
    if not expected <= set(dataset.column_names):
        raise ValueError(f"the {name} rows have {dataset.column_names}, expected {sorted(expected)}")
