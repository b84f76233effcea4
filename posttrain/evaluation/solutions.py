"""The value model's reading of whole solutions, token by token, for the report's calibration and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.sources import write_jsonl
from posttrain.data.steps import step_ends
from posttrain.evaluation.run_folder import SolutionValues
from posttrain.models.value import values_at_every_position
from posttrain.sampling import Sample
from posttrain.schema import AnswerRecord


@torch.no_grad()
def read_solution(
    value_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    sample: Sample,
    record: AnswerRecord,
    *,
    delimiters: tuple[str, ...],
) -> SolutionValues:
    """V of every prefix of one sampled solution; `record` is its grade."""
    ids = [*prompt, *sample.token_ids]
    input_ids = torch.tensor([ids], device=value_model.device)
    value = values_at_every_position(value_model, input_ids, torch.ones_like(input_ids, dtype=torch.bool))[0]
    starts = step_ends(tokenizer, delimiters).starts(list(sample.token_ids))
    # A step ends on the token before the next one starts. The last step has no such token: the answer ends it.
    ends = [len(prompt) + i - 1 for i, is_start in enumerate(starts) if is_start and i > 0]
    return SolutionValues(
        task_id=record.task_id,
        grade=record.grade,
        tokens=tuple(str(tokenizer.decode([token])) for token in ids),
        values=tuple(value.tolist()),
        is_action=tuple(i >= len(prompt) for i in range(len(ids))),
        step_ends=tuple(ends),
    )


def write_solutions(path: Path, solutions: Sequence[SolutionValues]) -> None:
    """One JSON line per solution, the form that read_solutions reads."""
    write_jsonl(path, map(asdict, solutions))
