"""What the two data verbs print."""

from __future__ import annotations

import pytest

from posttrain.data.encode import encode_trajectory
from posttrain.data.inspect import (
    DataCheckConfig,
    DataInspectConfig,
    RowKind,
    colored_tokens,
    data_check,
    data_inspect,
)
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import OnBadRow, RowsError, write_jsonl

ROW = {"task_id": "t", "prompt": "q", "completion": "a\nb", "reward": 1, "finish_reason": "stop"}


@pytest.fixture
def source(tmp_path) -> str:
    write_jsonl(tmp_path / "rows.jsonl", [ROW, {}])
    return str(tmp_path / "rows.jsonl")


@pytest.fixture
def tokenizer_folder(tmp_path, char_tokenizer) -> str:
    char_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_check_prints_the_counts_when_bad_rows_are_skipped(source, capsys):
    data_check(DataCheckConfig(source, on_bad_row=OnBadRow.SKIP))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["2", "1", "1"]


def test_check_names_the_faults_of_the_kind_asked_for(source):
    with pytest.raises(RowsError, match=r"rows\.jsonl:1: chosen: is missing"):
        data_check(DataCheckConfig(source, kind=RowKind.PREFERENCE))


def test_check_with_a_tokenizer_prints_the_audit(source, tokenizer_folder, capsys):
    data_check(DataCheckConfig(source, on_bad_row=OnBadRow.SKIP, tokenizer=tokenizer_folder))
    # <bos> q a \n b <eos>: 6 tokens, of which 4 were chosen.
    counts = [line.split("max")[1].split() for line in capsys.readouterr().out.splitlines() if "/ max" in line]
    assert counts == [["6", "/", "6", "/", "6"], ["4", "/", "4", "/", "4"]]


def test_tokenizer_is_refused_where_nothing_is_encoded(source):
    with pytest.raises(ValueError, match="only trajectories are encoded"):
        DataCheckConfig(source, kind=RowKind.COMPLETION, tokenizer="any")


def test_inspect_prints_one_token_per_line_outside_a_terminal(tmp_path, tokenizer_folder, capsys):
    write_jsonl(tmp_path / "good.jsonl", [ROW, ROW])
    data_inspect(DataInspectConfig(str(tmp_path / "good.jsonl"), tokenizer_folder, n=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("6 tokens, 4 actions, 2 steps, reward 1")
    assert [line.split()[2:] for line in lines[2:8]] == [
        ["prompt", "'<bos>'"],
        ["prompt", "'q'"],
        ["step", "start", "'a'"],
        ["action", "'\\n'"],
        ["step", "start", "'b'"],
        ["action", "1", "'<eos>'"],
    ]


def test_control_characters_of_a_row_do_not_reach_the_terminal(wide_tokenizer):
    row = parse_trajectory({**ROW, "completion": "a\x0bb"}, "f:1")
    text = colored_tokens(encode_trajectory(row, wide_tokenizer, 0, step_delimiters=()), wide_tokenizer)
    assert "\x0b" not in text
    assert "\\x0b" in text
    assert text.endswith("[+1]\x1b[0m")
