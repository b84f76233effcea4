"""Implicit rewards on fresh samples of the reference, followed while a policy trains (arXiv 2404.12358 v2, Eq. 16).

Over answers y that the reference π_ref samples, and no others,

    E[β Σ_t log π/π_ref]  =  −β E[Σ_t KL(π_ref(·|s_t) ‖ π(·|s_t))]  <=  0

so their implicit reward falls as soon as the policy moves, whatever it learns. The chosen answers of pairs are such
samples only as far as the reference was tuned to give them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.audit import prepare
from posttrain.data.collate import StateLevel, collate
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import OnBadRow, RowsError, read_rows
from posttrain.data.tokenizer_card import summary_path
from posttrain.schema import EncodedTrajectory, TokenBatch

MAX_MEAN_GAP = 0.1  # nats per token; bfloat16 against float32 gives about a tenth of it
UNCUT = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}  # sampling from π_ref itself


class ReferenceSamples:
    """A fixed set of the reference's answers, all of which every process scores when a log is due.

    behavior_logp: log π_ref of each action as the sampler recorded it, None where it did not. With it a file of
    another model's samples is found out at the first measurement.
    """

    def __init__(
        self,
        source: str,
        rows: Sequence[EncodedTrajectory],
        behavior_logp: Sequence[Sequence[float] | None],
        *,
        beta: float,
        batch_size: int,
    ) -> None:
        if len(rows) < 2:
            raise ValueError(f"{source}: {len(rows)} samples of the reference, needed 2 or more for a standard error")
        self.source = source
        self.beta = beta
        starts = range(0, len(rows), batch_size)
        self._batches = [rows[start : start + batch_size] for start in starts]
        self._behavior_logp = behavior_logp
        self._is_checked = False

    @torch.no_grad()
    def measure(self, policy: nn.Module, reference: nn.Module) -> dict[str, float]:
        """Means over the samples, in reward units, to be logged.

        rewards/reference_samples          of β Σ log π/π_ref, which may lie above 0 by chance
        rewards/reference_samples_stderr   its standard error
        rewards/reference_samples_exact    of −β Σ_t KL(π_ref ‖ π), each state's KL exact: the same expectation, <= 0
        """
        returns: list[Tensor] = []
        exact: list[Tensor] = []
        ref_logps: list[list[float]] = []
        for rows in self._batches:
            h, kl, ref_logp = self._score(rows, policy, reference)
            returns.append(h)
            exact.append(kl)
            ref_logps += ref_logp
        self._require_own_samples(ref_logps)
        h, kl = torch.cat(returns), torch.cat(exact)
        return {
            "rewards/reference_samples": h.mean().item(),
            "rewards/reference_samples_stderr": h.std().item() / math.sqrt(len(h)),
            "rewards/reference_samples_exact": -kl.mean().item(),
        }

    def _score(
        self, rows: Sequence[EncodedTrajectory], policy: nn.Module, reference: nn.Module
    ) -> tuple[Tensor, Tensor, list[list[float]]]:
        """β Σ log π/π_ref and β Σ KL of each row, and log π_ref of each action."""
        device = next(policy.parameters()).device
        batch = TokenBatch(**{k: x.to(device) for k, x in collate(rows, pad_id=0, states=StateLevel.TOKEN).items()})
        logp, ref_logp = (_next_logp(model, batch) for model in (policy, reference))
        kl = torch.where(batch.is_action, (ref_logp.exp() * (ref_logp - logp)).sum(-1), 0.0)
        chosen = batch.input_ids[:, 1:, None]
        own, others = logp.gather(-1, chosen).squeeze(-1), ref_logp.gather(-1, chosen).squeeze(-1)
        log_ratio = torch.where(batch.is_action, own - others, 0.0)
        by_row = [row[is_action].tolist() for row, is_action in zip(others, batch.is_action, strict=True)]
        return self.beta * log_ratio.sum(-1), self.beta * kl.sum(-1), by_row

    def _require_own_samples(self, ref_logps: Sequence[Sequence[float]]) -> None:
        """Raises RowsError, once, when the recorded log-probabilities are not the reference's."""
        if self._is_checked:
            return
        self._is_checked = True
        gaps = [
            abs(recorded - scored)
            for recorded_row, scored_row in zip(self._behavior_logp, ref_logps, strict=True)
            if recorded_row is not None
            for recorded, scored in zip(recorded_row, scored_row, strict=True)
        ]
        mean = math.fsum(gaps) / len(gaps) if gaps else 0.0
        if mean > MAX_MEAN_GAP:
            raise RowsError(
                f"{self.source}: the recorded log-probabilities are {mean:.2f} nats per token from the reference's, "
                f"at most {MAX_MEAN_GAP} expected: these are samples of another model. Collect them with the reference"
            )


def read_reference_samples(
    source: str, tokenizer: PreTrainedTokenizerBase, *, beta: float, max_length: int, batch_size: int
) -> ReferenceSamples:
    """Rows that `posttrain collect` has sampled from the reference.

    Raises RowsError for rows that cannot be used, and when the summary beside them tells of another temperature than 1
    or of a cut distribution: the identity is about samples of the reference as it is.
    """
    _require_uncut(source)
    read = read_rows(source, parse_trajectory, on_bad_row=OnBadRow.ERROR)
    encoded = prepare(
        read, tokenizer, max_length=max_length, step_delimiters=(), max_dropped_fraction=0.0
    ).encoded  # none is dropped: without its long answers the rest would be no sample
    behavior_logp = [read.rows[item.row_id].behavior_logp for item in encoded]
    return ReferenceSamples(source, encoded, behavior_logp, beta=beta, batch_size=batch_size)


def _require_uncut(source: str) -> None:
    path = summary_path(Path(source))
    run = json.loads(path.read_text(encoding="utf-8"))["run"] if path.is_file() else {}  # also of an unfinished one
    changed = {name: run[name] for name, plain in UNCUT.items() if name in run and run[name] != plain}
    if changed:
        raise RowsError(
            f"{source}: was sampled with {changed}, needed {UNCUT}: a sharpened or cut distribution is not the "
            "reference, and its mean implicit reward may have any sign"
        )


def _next_logp(model: nn.Module, batch: TokenBatch) -> Tensor:
    """[B, T, V] float32, whole: as trl's trainers do, and through the model's own forward, which engines hook."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.is_token.long(), use_cache=False).logits
    return torch.log_softmax(logits[:, :-1].float(), dim=-1)
