from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

import posttrain
from posttrain.provenance import command_line, git_state, hash_data, read_run_cards, write_json, write_run_card


def test_card_holds_config_seeds_versions_and_command_when_written(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), seed=7, learning_rate=1 / 3, report_to="none", use_cpu=True)
    card = json.loads(write_run_card(tmp_path, args.to_dict(), {"train.jsonl": "ab"}).read_text())
    assert card["config"]["learning_rate"] == 1 / 3
    assert card["seeds"] == {"seed": 7, "data_seed": None}
    assert card["packages"]["torch"] == torch.__version__
    assert card["packages"]["posttrain"] == posttrain.__version__
    assert card["command"] == command_line(sys.argv)
    assert card["data_sha256"] == {"train.jsonl": "ab"}
    assert card["started"].endswith("+00:00")


@pytest.mark.parametrize("program", ["/srv/posttrain/__main__.py", "/srv/.venv/bin/posttrain"])
def test_command_names_no_folder_of_the_machine_in_either_form_of_the_command_line(program: str) -> None:
    arguments = ["oreo", "--train_data", "runs/samples.jsonl"]
    assert command_line([program, *arguments]) == ["posttrain", *arguments]


def test_card_of_the_first_start_is_kept_when_a_run_is_started_again(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run_card(tmp_path, {"seed": seed}, {})
    found = {path.name: json.loads(path.read_text())["seeds"]["seed"] for path in tmp_path.glob("run*.json")}
    assert found == {"run-1.json": 1, "run-2.json": 2, "run.json": 3}


def test_cards_of_a_run_that_was_started_eleven_times_are_read_in_their_order(tmp_path: Path) -> None:
    for seed in range(11):
        write_run_card(tmp_path, {"seed": seed}, {})
    assert [card["config"]["seed"] for card in read_run_cards(tmp_path)] == list(range(11))


def test_data_hash_is_that_of_the_bytes_when_given_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"abc")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.jsonl").write_bytes(b"")
    # FIPS 180-2 appendix B.1 for "abc"; the well-known hash of the empty string
    assert hash_data(tmp_path / "a.jsonl", folder, "organisation/set-on-the-hub") == {
        str(tmp_path / "a.jsonl"): "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        str(folder / "b.jsonl"): "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }


def test_git_state_tells_commit_and_changes_when_source_is_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "posttrain"
    source.mkdir()
    (source / "__init__.py").write_text("")
    monkeypatch.setattr(posttrain, "__file__", str(source / "__init__.py"))
    assert git_state() is None  # no repository
    _git(tmp_path, "init", "-q")
    assert git_state() is None  # a repository that does not track this source
    _git(tmp_path, "add", "posttrain")
    _git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert git_state() == {"commit": commit, "is_dirty": False}
    (source / "new.py").write_text("")
    assert git_state() == {"commit": commit, "is_dirty": True}


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_json_written_by_many_at_once_is_whole_and_none_of_them_fails(tmp_path: Path) -> None:
    path, contents = tmp_path / "outcome.json", [{"writer": k, "padding": "x" * 10_000} for k in range(8)]

    def write(content: dict[str, object]) -> None:
        for _ in range(50):
            write_json(path, content)
            assert json.loads(path.read_text()) in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert [file.name for file in tmp_path.iterdir()] == ["outcome.json"]
