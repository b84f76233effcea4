"""Reading whole sources: counts, hashes, clear errors, and a thousand broken files that give nothing worse."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from posttrain.data.rows import parse_trajectory, trajectory_to_json
from posttrain.data.sources import OnBadRow, RowsError, hub_parts, read_rows, write_jsonl

GOOD = {"task_id": "t", "prompt": "1+1=", "completion": "2", "reward": 1.0, "finish_reason": "stop"}
RECORDED = {
    "task_id": "t",
    "prompt": [{"role": "user", "content": "é"}],
    "input_ids": [1, 5, 6, 7],
    "action_spans": [[1, 2], [3, 4]],
    "step_rewards": [{"start": 1, "end": 4, "reward": 0.5}],
    "finish_reason": "length",
    "behavior_logp": [-0.5, -1.0],
}


def read(path, on_bad_row=OnBadRow.ERROR):
    return read_rows(path, parse_trajectory, on_bad_row=on_bad_row)


def error_of(path, on_bad_row=OnBadRow.ERROR) -> str:
    with pytest.raises(RowsError) as error:
        read(path, on_bad_row)
    return str(error.value)


def test_jsonl_is_counted_hashed_and_placed_by_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [GOOD, RECORDED])
    rows = read(path)
    assert (rows.n_read, rows.n_bad) == (2, 0)
    assert [row.where for row in rows.rows] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert rows.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_parquet_gives_the_rows_that_jsonl_gives(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_jsonl(tmp_path / "rows.jsonl", [RECORDED, {**RECORDED, "behavior_logp": None}])
    table = pyarrow.Table.from_pylist([RECORDED, {**RECORDED, "behavior_logp": None}])
    parquet.write_table(table, tmp_path / "rows.parquet")
    from_parquet = read(tmp_path / "rows.parquet")
    assert [row.where for row in from_parquet.rows] == ["rows.parquet:1", "rows.parquet:2"]
    from_jsonl = read(tmp_path / "rows.jsonl")
    assert [trajectory_to_json(row) for row in from_parquet.rows] == [
        trajectory_to_json(row) for row in from_jsonl.rows
    ]
    assert from_parquet.sha256 == hashlib.sha256((tmp_path / "rows.parquet").read_bytes()).hexdigest()


def test_bad_rows_are_named_with_their_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n{oops\n[1]\n\xff\xfe\n")
    assert error_of(path).splitlines() == [
        f"{path}: 4 of 5 rows cannot be used; mend them, or skip them with --on_bad_row skip",
        "  rows.jsonl:2: line: is empty, expected a JSON object",
        "  rows.jsonl:3: line: is no JSON (Expecting property name enclosed in double quotes, column 2), "
        "expected one object per line",
        "  rows.jsonl:4: row: got [1] (a list), expected a JSON object",
        "  rows.jsonl:5: line: byte 0 is not UTF-8, expected UTF-8 text",
    ]


def test_skipping_keeps_the_good_rows_and_counts_the_others(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{}\n" + json.dumps(GOOD) + "\n{}")
    rows = read(path, OnBadRow.SKIP)
    assert (rows.n_read, rows.n_bad, len(rows.rows)) == (4, 2, 2)
    assert [row.where for row in rows.rows] == ["rows.jsonl:1", "rows.jsonl:3"]


def test_at_most_twenty_faults_are_listed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n" * 50)  # four faults each
    lines = error_of(path).splitlines()
    assert lines[0].startswith(f"{path}: 50 of 50 rows cannot be used")
    assert len(lines) == 21


def test_source_without_a_usable_row_is_an_error_even_when_skipping(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    assert "1 of 1 rows cannot be used" in error_of(path, OnBadRow.SKIP)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "holds no row, expected at least one"),
        ("rows.jsonl", "{}".encode("utf-16"), "is UTF-16, expected UTF-8; convert it with iconv"),
        ("rows.parquet", b"no parquet", "cannot be read as Parquet"),
        ("rows.csv", b"a,b", "ends in '.csv', expected a .jsonl or .parquet file, or a Hub id"),
    ],
)
def test_unreadable_file_is_told_with_what_was_expected(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert message in error_of(path)


def test_missing_file_and_folder_are_told_apart(tmp_path):
    assert "no such file" in error_of(tmp_path / "rows.jsonl")
    assert "is a folder" in error_of(tmp_path)


def test_byte_order_mark_of_utf8_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read(path).rows[0].completion == "2"


def test_hub_id_that_cannot_be_reached_names_config_and_split(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets_config = pytest.importorskip("datasets").config
    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", True)
    message = error_of("nobody/nothing:main:test")
    assert message.startswith("nobody/nothing: no local file, and not loaded from the Hub (config main, split test)")


def test_hub_id_has_default_config_and_train_split_unless_named():
    parts = [hub_parts(source) for source in ("a/b", "a/b:main", "a/b::test")]
    assert [(p.name, p.config, p.split) for p in parts] == [
        ("a/b", None, "train"),
        ("a/b", "main", "train"),
        ("a/b", None, "test"),
    ]


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(ValueError, match="Out of range float"):
        write_jsonl(path, [{"a": 2}, {"a": float("nan")}])
    assert path.read_text() == '{"a": 1}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_thousand_broken_files_give_rows_or_a_rows_error(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "rows.jsonl"
    n_refused = 0
    for _ in range(1000):
        path.write_bytes(broken_line(rng))
        try:
            assert len(read(path).rows) >= 1
        except RowsError as error:
            n_refused += 1
            str(error).encode("utf-8")  # printable anywhere
    assert 500 < n_refused < 1000  # the mutations bite, and do not all bite


STRANGE = (
    *(None, True, -1, 0, 10**25, 1e308, float("nan"), float("inf"), "", "\ud800", "\x00", "stop", [], {}),
    *([None], [[]], [1, "2"], [[1]], [[1, 2, 3]], {"role": "user"}, [{"role": [], "content": {}}], "x" * 5000),
)
RAW = (
    b"",
    b"\xff",
    b"[" * 5000,
    b'{"a":' * 5000,
    b"1" * 5000,
    b"null",
    b"\x1f\x8b\x08",
    b'{"reward": 1e999}',
    b"\r\n\r\n",
)


def broken_line(rng: random.Random) -> bytes:
    obj = json.loads(json.dumps(rng.choice([GOOD, RECORDED])))
    kind = rng.randrange(4)
    if kind == 0:
        obj[rng.choice(list(obj))] = rng.choice(STRANGE)
    elif kind == 1:
        del obj[rng.choice(list(obj))]
        obj[rng.choice(["rewrd", "\ud800", "", "messages", "ref_logp"])] = rng.choice(STRANGE)
    line = json.dumps(obj).encode()
    if kind == 2:  # bytes flipped, cut and doubled
        cut = rng.randrange(len(line))
        line = rng.choice([line[:cut], line[cut:], line[:cut] + bytes([rng.randrange(256)]) + line[cut + 1 :]])
    if kind == 3:
        line = rng.choice([line, line + b"\n"]) + rng.choice(RAW)
    return line
