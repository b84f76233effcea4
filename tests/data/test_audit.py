"""What training gets to see, and the table that says what it does not."""

from __future__ import annotations

import dataclasses
import re

import pytest

from posttrain.data.audit import Spread, prepare
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import Rows, RowsError


def rows_of(*completions: str, finish_reason: str = "stop", n_bad: int = 0) -> Rows:
    base = {"task_id": "t", "prompt": "q", "reward": 1.0, "finish_reason": finish_reason}
    rows = tuple(
        parse_trajectory({**base, "completion": text, "reward": float(i % 2)}, f"f:{i + 1}")
        for i, text in enumerate(completions)
    )
    return Rows("f.jsonl", rows, n_read=len(rows) + n_bad, n_bad=n_bad, sha256="0123456789abcdef")


def prepared(rows: Rows, tokenizer, *, max_length: int = 10, max_dropped_fraction: float = 0.5):
    return prepare(
        rows, tokenizer, max_length=max_length, step_delimiters=("\n",), max_dropped_fraction=max_dropped_fraction
    )


def test_too_long_rows_are_dropped_whole_and_row_ids_stay_those_of_the_source(char_tokenizer):
    # <bos> q + n characters + <eos>: lengths 4, 13 and 5, so the second goes.
    result = prepared(rows_of("a", "a" * 10, "ab"), char_tokenizer)
    assert [item.row_id for item in result.encoded] == [0, 2]
    assert all(item.input_ids[-1] == char_tokenizer.eos_token_id for item in result.encoded)


def test_row_of_exactly_max_length_is_kept(char_tokenizer):
    assert prepared(rows_of("a" * 7), char_tokenizer).audit.n_kept == 1


def test_table_states_every_count(char_tokenizer):
    result = prepared(rows_of("a", "a" * 10, "ab", n_bad=2), char_tokenizer)
    assert [re.split("   *", line) for line in result.audit.table().splitlines()] == [
        ["f.jsonl", "sha256 0123456789ab"],
        ["", "rows read", "5"],
        ["", "bad, skipped", "2"],
        ["", "over 10 tokens, dropped", "1"],
        ["", "kept", "2"],
        ["", "of these length-stopped, no EOS", "0"],
        ["", "tokens p50 / p95 / max", "4 / 5 / 5"],
        ["", "action tokens p50 / p95 / max", "2 / 3 / 3"],
        ["", "reward mean", "0.0000"],
    ]


def test_rows_without_reward_have_no_mean_and_the_table_says_so(char_tokenizer):
    rows = rows_of("a", "ab")
    unrewarded = dataclasses.replace(rows, rows=tuple(dataclasses.replace(row, reward=None) for row in rows.rows))
    audit = prepared(unrewarded, char_tokenizer).audit
    assert audit.reward_mean is None
    assert re.split("   *", audit.table().splitlines()[-1]) == ["", "reward mean", "-"]


def test_length_stopped_rows_are_kept_and_counted(char_tokenizer):
    audit = prepared(rows_of("a", "ab", finish_reason="length"), char_tokenizer).audit
    assert (audit.n_length_stopped, audit.n_kept, audit.reward_mean) == (2, 2, 0.5)


def test_more_dropped_rows_than_allowed_is_an_error_that_names_the_fix(char_tokenizer):
    with pytest.raises(RowsError) as error:
        prepared(rows_of("a", "a" * 10, "ab"), char_tokenizer, max_dropped_fraction=0.05)
    assert str(error.value) == (
        "f.jsonl: 1 of 3 rows (33.3%) have more than max_length=10 tokens and would be dropped, at most 5.0% may be. "
        "The longest has 13: raise max_length, or max_dropped_fraction to accept the loss"
    )


def test_nothing_left_is_an_error_whatever_is_allowed(char_tokenizer):
    with pytest.raises(RowsError, match="2 of 2 rows"):
        prepared(rows_of("a" * 20, "a" * 20), char_tokenizer, max_dropped_fraction=1.0)


def test_rows_without_action_are_all_named(char_tokenizer):
    with pytest.raises(RowsError) as error:
        prepared(rows_of("", "a", "", finish_reason="length"), char_tokenizer)
    assert str(error.value).splitlines() == [
        "f.jsonl: 2 of 3 rows cannot be used",
        "  f:1: completion: holds no token, expected at least one action",
        "  f:3: completion: holds no token, expected at least one action",
    ]


def test_spread_is_the_nearest_rank():
    # Of 1 to 100: rank ceil(0.5 * 100) = 50 and ceil(0.95 * 100) = 95. Of three: ranks 2 and 3.
    assert Spread.of(range(1, 101)) == Spread(50, 95, 100)
    assert Spread.of([7, 1, 3]) == Spread(3, 7, 7)
