"""The benchmark of spare rows: its table is the recorded one, and how it counts pairs that are ordered otherwise."""

import json
from pathlib import Path

import torch

from benchmarks.spare_row import run

REPOSITORY = Path(__file__).resolve().parents[2]


def test_table_on_the_page_is_made_of_the_recorded_result():
    recorded = REPOSITORY / "benchmarks/spare_row/results/smollm2"
    table = run.table(json.loads(recorded.with_suffix(".json").read_text()))
    assert table in (REPOSITORY / "docs/spare_row_values.md").read_text()
    assert table == recorded.with_suffix(".md").read_text()


def test_flipped_counts_pairs_of_one_prompt_at_one_length_without_the_prompt_itself():
    # The first value is of the prompt, which all four share. At the second token the exact order is 1 < 2 < 3 < 4, of
    # six pairs; `found` has the first two the other way round.
    exact = [torch.tensor([0.0, value]) for value in (1.0, 2.0, 3.0, 4.0)]
    found = [torch.tensor([9.0, value]) for value in (2.5, 2.0, 3.0, 4.0)]
    assert run.flipped(exact, exact) == 0
    assert run.flipped(found, exact) == 1 / 6
