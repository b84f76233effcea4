"""Stop before a NaN or Inf reaches the weights, on all ranks together, and keep the batch that caused it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.losses import Term

Batch = Mapping[str, Tensor]


class NonFiniteError(RuntimeError):
    """A loss term or a gradient norm was NaN or Inf; no weight was changed in that step."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What one rank saw in the step that was stopped."""

    step: int  # optimiser steps finished before this one
    rank: int
    terms: list[str]  # names of the terms that are not finite
    grad_norms: list[str]  # names of the networks whose gradient norm is not finite
    row_ids: list[int]  # rows with a term that is not finite; all rows of the step when only a gradient norm is
    files: list[str]  # one safetensors file per micro-batch, in the folder of this report


class FiniteGuard:
    """Watches the terms of each micro-batch on the device and decides once per step, before the optimiser moves."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self._folder = folder
        self._accelerator = accelerator
        self._seen: list[tuple[Batch, dict[str, Tensor]]] = []  # micro-batches of the open step

    def watch(self, batch: Batch, terms: Sequence[Term]) -> None:
        """Remember a micro-batch and which of its rows are finite, without waiting for the device."""
        n_rows = len(batch["row_id"])
        self._seen.append((batch, {term.name: _is_bad_row(term.value.detach(), n_rows) for term in terms}))

    def check(self, step: int, grad_norms: Mapping[str, float]) -> None:
        """Raise NonFiniteError on every rank if a term or norm of the step is not finite on any rank.

        All ranks must call this, with the same global norms. One scalar is reduced; more is sent only if it stops.
        """
        is_bad = torch.stack([is_bad_row.any() for _, flags in self._seen for is_bad_row in flags.values()]).any()
        n_bad_ranks = self._accelerator.reduce(is_bad.float(), "sum")
        bad_norms = [name for name, norm in grad_norms.items() if not math.isfinite(norm)]
        if n_bad_ranks.item() == 0 and not bad_norms:
            self._seen.clear()
            return
        fault = self._record(step, bad_norms, keep_all=n_bad_ranks.item() == 0)
        raise NonFiniteError(_message(gather_object([fault]), self._folder / f"step-{step}"))

    def _record(self, step: int, bad_norms: list[str], *, keep_all: bool) -> Fault:
        """Write this rank's offending micro-batches and a report beside them."""
        rank = self._accelerator.process_index
        folder = self._folder / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        terms: set[str] = set()
        row_ids: list[int] = []
        files: list[str] = []
        for index, (batch, flags) in enumerate(self._seen):
            is_bad_row = torch.stack(list(flags.values())).any(0)
            if not (keep_all or is_bad_row.any()):
                continue
            terms |= {name for name, flag in flags.items() if flag.any()}
            row_ids += batch["row_id"].tolist() if keep_all else batch["row_id"][is_bad_row].tolist()
            files.append(f"rank-{rank}-micro-batch-{index}.safetensors")
            save_file({name: tensor.cpu().contiguous() for name, tensor in batch.items()}, folder / files[-1])
        fault = Fault(step, rank, sorted(terms), bad_norms, row_ids, files)
        (folder / f"rank-{rank}.json").write_text(json.dumps(asdict(fault), indent=2) + "\n")
        return fault


def load_fault(report: Path) -> tuple[Fault, list[dict[str, Tensor]]]:
    """Read a `rank-<n>.json` report and its micro-batches, to run them again."""
    fault = Fault(**json.loads(report.read_text()))
    return fault, [load_file(report.parent / name) for name in fault.files]


def _is_bad_row(value: Tensor, n_rows: int) -> Tensor:
    """[n_rows] bool; a term that is not laid out by row marks all of them."""
    is_bad = ~torch.isfinite(value)
    if value.dim() > 0 and value.shape[0] == n_rows:
        return is_bad.reshape(n_rows, -1).any(-1)
    return is_bad.any().expand(n_rows)


def _message(faults: Sequence[Fault], folder: Path) -> str:
    lines = [f"step {faults[0].step} was stopped before the optimiser moved; no weight was changed"]
    for fault in faults:
        if fault.terms:
            lines.append(f"  rank {fault.rank}: {', '.join(fault.terms)} is NaN or Inf on rows {fault.row_ids}")
        elif fault.row_ids:
            lines.append(
                f"  rank {fault.rank}: the losses are finite, the gradient norm of {', '.join(fault.grad_norms)} is "
                f"not; rows {fault.row_ids}"
            )
    lines.append(f"  the batches are in {folder}; read them with posttrain.training.guards.load_fault")
    lines.append("  likely causes: a reward or log-probability that is not finite, or too high a learning rate")
    return "\n".join(lines)
