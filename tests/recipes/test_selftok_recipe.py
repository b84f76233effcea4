"""The recipe of visual tokens: every stage runs, and a run that has ended is not run again."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from posttrain.evaluation.records import read_records

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def module_at(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "recipes/selftok/run.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.slow
def test_smoke_runs_every_stage_once_and_ends_in_the_tables(tmp_path: Path) -> None:
    asked = ("--output", str(tmp_path), "--seeds", "0", "--smoke", "--offline")
    first = run(*asked)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "selftok" / "seed-0"
    methods = {record.method for record in read_records(folder / "answers.jsonl")}
    assert {
        f"{policy}/{how}" for policy in ("sft", "pg", "oreo") for how in ("greedy", "sample", "best_of_n")
    } < methods
    assert "| pg/sample, n = 1 over sft/sample, n = 1 |" in first.stdout
    rounds = [json.loads(line) for line in (folder / "pg" / "metrics.jsonl").read_text().splitlines()]
    assert sum("reward/strict" in row for row in rounds) == 2
    assert (folder / "pictures.html").is_file() and (folder / "pictures.png").is_file()
    again = run(*asked)
    assert again.returncode == 0
    assert again.stdout.count("finished before") == len((folder / "finished.jsonl").read_text().splitlines())


def test_tables_of_the_page_are_made_of_the_records() -> None:
    record = module_at("evals/record_selftok.py", "record_selftok")
    assert "\n".join(record.tables()) in record.README.read_text(encoding="utf-8")


def test_unknown_tokenizers_are_refused_with_those_that_are_there() -> None:
    refused = run("--output", "unused", "--tokenizers", "vae")
    assert refused.returncode != 0
    assert "selftok, no_schedule, cells, shifted" in refused.stderr
