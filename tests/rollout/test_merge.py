"""A collection over several engines: how problems are dealt, and what a merge makes of the shards or refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import OnBadRow, read_rows
from posttrain.rollout.collect import CollectConfig, collect
from posttrain.rollout.merge import MergeConfig, merge
from posttrain.rollout.shards import Shard

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> CollectConfig:
    return CollectConfig(
        model=str(model_folder),
        problems=str(write_problems(tmp_path / "problems.jsonl", 10)),
        output=tmp_path / "rows.jsonl",
        dtype="float32",
        device="cpu",
        batch_size=8,
        problems_per_chunk=3,
        samples_per_problem=2,
        max_new_tokens=12,
        seed=5,
    )


def write_problems(path: Path, n: int) -> Path:
    rows = [
        {"task_id": f"sum/{i}", "prompt": f"{i}+{i % 7}=", "answer": str(i + i % 7), "grader": "final_number"}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_chunks_of_problems_are_dealt_in_turn():
    # Ten problems in chunks of 3: 012 345 678 9. Of two shards the first takes chunks 0 and 2, the second 1 and 3.
    assert Shard(count=2, index=0).of(range(10), chunk_size=3) == [0, 1, 2, 6, 7, 8]
    assert Shard(count=2, index=1).of(range(10), chunk_size=3) == [3, 4, 5, 9]
    assert Shard(count=5, index=4).of(range(10), chunk_size=3) == []  # fewer chunks than shards


@pytest.mark.parametrize("text", ["2/2", "0", "-1/2", "1/0", "0/2/3"])
def test_shard_that_is_no_part_is_refused(config: CollectConfig, text: str):
    with pytest.raises(ValueError, match=f"shard is '{text}', needs index/count with an index below the count"):
        replace(config, shard=text)


@pytest.mark.parametrize("n_shards", [2, 5])  # of four chunks
def test_merged_shards_are_the_file_of_one_engine_byte_for_byte(config: CollectConfig, n_shards: int):
    for index in reversed(range(n_shards)):  # the order in which engines finish does not matter
        shard = collect(replace(config, shard=f"{index}/{n_shards}"))
        assert shard.name == f"rows-{index}-of-{n_shards}.jsonl"
    merged = merge(MergeConfig(config.output)).read_bytes()
    summary = json.loads(config.output.with_suffix(".summary.json").read_text())
    config.output.unlink()
    assert merged == collect(config).read_bytes()
    of_one_engine = json.loads(config.output.with_suffix(".summary.json").read_text())
    for name in ("is_complete", "run", "n_problems", "n_rows", "accuracy", "n_tokens", "n_cut_by_length", "tokenizer"):
        assert summary[name] == of_one_engine[name], name


def test_merged_rows_are_a_finished_collection_to_collect_itself(config: CollectConfig, monkeypatch):
    for index in range(2):
        collect(replace(config, shard=f"{index}/2"))
    merged = merge(MergeConfig(config.output)).read_bytes()
    monkeypatch.setattr("posttrain.rollout.collect.load_engine", None)  # nothing is sampled any more
    assert collect(config).read_bytes() == merged


def test_missing_shards_are_named_with_the_way_to_make_them(config: CollectConfig):
    with pytest.raises(ValueError, match=r"there is no .*rows-0-of-2.jsonl or the like: run collect with --shard"):
        merge(MergeConfig(config.output))
    config.output.with_name("rows-0-of-3.jsonl").touch()
    message = r"of the 3 shards of rows.jsonl, 1, 2 are missing: run collect with --shard 1/3"
    with pytest.raises(ValueError, match=message):
        merge(MergeConfig(config.output))


def test_unfinished_shard_is_named_with_the_way_to_finish_it(config: CollectConfig):
    only = collect(replace(config, shard="0/1"))
    summary = json.loads(only.with_suffix(".summary.json").read_text())
    only.with_suffix(".summary.json").write_text(json.dumps({"is_complete": False, "run": summary["run"]}))
    with pytest.raises(ValueError, match=r"rows-0-of-1.jsonl is not finished: run collect with --shard 0/1 again"):
        merge(MergeConfig(config.output))
    assert not config.output.exists()


def test_shards_of_different_runs_are_refused(config: CollectConfig):
    collect(replace(config, shard="0/2"))
    collect(replace(config, shard="1/2", seed=6))
    with pytest.raises(
        ValueError, match=r"rows-1-of-2.jsonl is of another run than rows-0-of-2.jsonl: seed is 6, was 5"
    ):
        merge(MergeConfig(config.output))


def test_shards_dealt_in_other_chunks_or_from_fewer_problems_are_refused(config: CollectConfig):
    # Either would take some problems twice and others never.
    collect(replace(config, shard="0/2"))
    other = collect(replace(config, shard="1/2", problems_per_chunk=4))
    with pytest.raises(ValueError, match="problems_per_chunk is 4, was 3"):
        merge(MergeConfig(config.output))
    other.unlink()
    collect(replace(config, shard="1/2", limit=9))
    with pytest.raises(ValueError, match="n_problems is 9, was 10"):
        merge(MergeConfig(config.output))


def test_shard_copied_under_another_name_is_refused_as_a_double(config: CollectConfig):
    first = collect(replace(config, shard="0/2"))
    copy = first.with_name("rows-1-of-2.jsonl")
    shutil.copy(first, copy)
    shutil.copy(first.with_suffix(".summary.json"), copy.with_suffix(".summary.json"))
    with pytest.raises(
        ValueError, match=r"'sum/0' is in rows-0-of-2.jsonl and in rows-1-of-2.jsonl: was a shard copied"
    ):
        merge(MergeConfig(config.output))
    assert not config.output.exists()


def test_row_taken_out_of_a_finished_shard_is_missed(config: CollectConfig):
    shard = collect(replace(config, shard="0/1"))
    shard.write_text("".join(shard.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"rows-0-of-1.jsonl holds 19 rows, its summary counts 20"):
        merge(MergeConfig(config.output))


def test_shards_of_two_divisions_and_an_output_in_the_way_are_refused(config: CollectConfig):
    for name in ("rows-0-of-2.jsonl", "rows-0-of-3.jsonl"):
        config.output.with_name(name).touch()
    with pytest.raises(ValueError, match=r"are shards of \[2, 3\] parts"):
        merge(MergeConfig(config.output))
    config.output.write_text("mine\n")
    with pytest.raises(ValueError, match=r"rows.jsonl is there already"):
        merge(MergeConfig(config.output))
    assert config.output.read_text() == "mine\n"


@pytest.mark.slow
def test_two_engine_processes_one_killed_and_run_again_merge_to_the_rows_of_one(config: CollectConfig, tmp_path: Path):
    n_problems, n_samples = 60, 4
    config = replace(config, problems=str(write_problems(tmp_path / "many.jsonl", n_problems)), max_new_tokens=40)
    config = replace(config, samples_per_problem=n_samples)
    first, second = (start_engine(config, f"{index}/2") for index in range(2))
    doomed = Shard.parse("1/2").path(config.output)
    while second.poll() is None and not (doomed.exists() and doomed.stat().st_size > 0):
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL  # it had not come to its end
    n_rows_before = doomed.read_bytes().count(b"\n")
    assert 0 < n_rows_before < n_problems // 2 * n_samples
    assert first.wait(timeout=300) == 0
    with pytest.raises(ValueError, match=r"rows-1-of-2.jsonl is not finished"):
        merge(MergeConfig(config.output))
    assert start_engine(config, "1/2").wait(timeout=300) == 0

    merged = merge(MergeConfig(config.output))
    rows = read_rows(merged, parse_trajectory, on_bad_row=OnBadRow.ERROR).rows
    assert [row.task_id for row in rows] == [f"sum/{i}" for i in range(n_problems) for _ in range(n_samples)]
    undivided = replace(config, output=tmp_path / "undivided.jsonl")
    assert collect(undivided).read_bytes() == merged.read_bytes()


def start_engine(config: CollectConfig, shard: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "posttrain", "collect", "--shard", shard, "--output", str(config.output)]
    for name in ("model", "problems", "dtype", "device", "batch_size", "problems_per_chunk", "samples_per_problem"):
        command += [f"--{name}", str(getattr(config, name))]
    command += ["--max_new_tokens", str(config.max_new_tokens), "--seed", str(config.seed)]
    # As many threads as here: sums of other parts end in other last bits.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
