"""The files of a reference cache: what they hold, what makes them useless, what a kill or a bad disk does to them."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from posttrain.schema import EncodedTrajectory
from posttrain.training.oreo import train_oreo
from posttrain.training.reference_cache import (
    HEAD,
    CacheMismatchError,
    DamagedCacheError,
    ReferenceCache,
    hash_model,
    hash_rows,
    shard_name,
)
from posttrain.training.reference_scoring import cache_key, prepare_reference_cache
from tests.training import cache_run
from tests.training.tiny_oreo import tiny_config, trajectories

REPOSITORY = Path(__file__).resolve().parents[2]
HIDDEN, LOG_PROBS = "cached_hidden", "cached_log_probs"
N_SHARDS = 6


def prepare(
    policy: Path,
    folder: Path,
    rows: list[EncodedTrajectory] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **changes: Any,
) -> ReferenceCache:
    changes = {"reference_from": HIDDEN, "reference_cache": str(folder), "alpha": 0.0, **changes}
    return prepare_reference_cache(
        tiny_config(policy, folder.parent / "run", **changes),
        trajectories(cache_run.N_ROWS) if rows is None else rows,
        PreTrainedTokenizerFast.from_pretrained(policy) if tokenizer is None else tokenizer,
        rows_per_shard=cache_run.ROWS_PER_SHARD,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of hidden states; tests change copies of it."""
    return prepare(policy_folder, tmp_path_factory.mktemp("whole") / "cache").folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "cache")


def dense(policy: Path, row: EncodedTrajectory) -> tuple[torch.Tensor, torch.Tensor]:
    """log π of each action and the final hidden state before it, of one row by itself."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    ids, is_action = torch.tensor([row.input_ids]), torch.tensor(row.is_action[1:])
    with torch.no_grad():
        log_pi = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        return log_pi[is_action], model.model(ids).last_hidden_state[0, :-1][is_action]


@pytest.mark.parametrize(("holds", "index"), [(LOG_PROBS, 0), (HIDDEN, 1)])
def test_rows_are_read_in_the_order_asked_for_as_the_reference_scores_them(policy_folder, tmp_path, holds, index):
    cache = prepare(policy_folder, tmp_path / "cache", reference_from=holds)
    rows = trajectories(cache_run.N_ROWS)
    asked = [22, 0, 7, 4, 3]  # over four shards, against their order
    expected = torch.cat([dense(policy_folder, rows[row_id])[index] for row_id in asked])
    # One row alone against padded batches of four, in float32: sums in another order.
    torch.testing.assert_close(cache.read(asked), expected, rtol=1e-5, atol=1e-5)


def test_head_of_the_cache_is_the_references(policy_folder, copy):
    head = prepare(policy_folder, copy).read_head()
    weight = AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.float32).lm_head.weight
    assert torch.equal(head.weight, weight)
    assert head.bias is None
    assert not head.weight.requires_grad


def test_hidden_states_are_kept_in_the_dtype_that_the_head_multiplies_them_in(policy_folder, tmp_path):
    for name, changes in (("mixed", {"bf16": True}), ("narrow", {"dtype": "bfloat16"})):
        cache = prepare(policy_folder, tmp_path / name, **changes)
        assert cache.read([0]).dtype == torch.bfloat16
        assert cache.read_head().weight.dtype == (torch.float32 if name == "mixed" else torch.bfloat16)


def test_second_run_reads_the_cache_and_computes_nothing(policy_folder, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert cache_run.fill(policy_folder, copy, HIDDEN) == []
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def moved_weights(policy: Path, folder: Path) -> Path:
    """The policy with one weight changed in its last bit."""
    shutil.copytree(policy, folder)
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(torch.int32).flatten()[0] ^= 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_other_weights_are_refused_by_name(policy_folder, copy, tmp_path):
    other = moved_weights(policy_folder, tmp_path / "other")
    with pytest.raises(
        CacheMismatchError, match=r"it differs in reference model:\n  reference model: sha256 \w{12}… there"
    ):
        prepare(policy_folder, copy, reference=str(other))


def test_other_rows_are_refused_by_name(policy_folder, copy):
    rows = trajectories(cache_run.N_ROWS)
    changed_id = dataclasses.replace(rows[9], input_ids=(*rows[9].input_ids[:-1], 5))
    assert changed_id != rows[9]
    changed_mask = dataclasses.replace(rows[9], is_action=(*rows[9].is_action[:-1], False))
    for changed in ([*rows[:9], changed_id, *rows[10:]], [*rows[:9], changed_mask, *rows[10:]], rows[::-1], rows[1:]):
        with pytest.raises(CacheMismatchError, match=r"does not fit this run, it differs in rows:\n  rows: sha256"):
            prepare(policy_folder, copy, changed)


def test_other_rewards_use_the_same_cache():
    rows = trajectories(5)
    doubled = [dataclasses.replace(row, reward=tuple(2 * r for r in row.reward)) for row in rows]
    assert hash_rows(doubled) == hash_rows(rows)


def test_another_template_is_refused_by_name(policy_folder, copy):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(policy_folder)
    tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(CacheMismatchError, match=r"it differs in chat template:\n  chat template: None there, sha256"):
        prepare(policy_folder, copy, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 77}, "differs in max_length:\n  max_length: 2048 there, 77 now"),
        ({"dtype": "float64"}, "differs in precision:\n  precision: float32 there, float64 now"),
        ({"bf16": True}, "precision: float32 there, float32 under bfloat16 autocast now"),
        (
            {"reference_from": LOG_PROBS},
            "differs in kind of numbers:\n  .*: cached_hidden there, cached_log_probs now",
        ),
        ({"max_length": 9, "bf16": True}, "differs in max_length, precision:"),
    ],
)
def test_another_way_to_compute_is_refused_by_name(policy_folder, copy, changes, message):
    with pytest.raises(CacheMismatchError, match=message) as caught:
        prepare(policy_folder, copy, **changes)
    assert "Name another folder as reference_cache, or delete this one" in str(caught.value)


def test_cache_of_another_run_is_left_as_it_is(policy_folder, copy):
    before = contents(copy)
    with pytest.raises(CacheMismatchError):
        prepare(policy_folder, copy, max_length=77)
    assert contents(copy) == before


def open_cache(policy: Path, folder: Path) -> ReferenceCache:
    config = tiny_config(policy, folder.parent / "run", reference_from=HIDDEN)
    rows, tokenizer = trajectories(cache_run.N_ROWS), PreTrainedTokenizerFast.from_pretrained(policy)
    key = cache_key(config, rows, tokenizer, rows_per_shard=cache_run.ROWS_PER_SHARD)
    return ReferenceCache(folder, key, rows)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bit_or_cut_of_a_part_is_found_and_the_part_computed_anew(policy_folder, copy, caplog, seed):
    rng = random.Random(seed)
    before = contents(copy)
    name = rng.choice(sorted(name for name in before if name.endswith(".safetensors")))
    damaged = bytearray(before[name])
    if seed % 2:
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    else:
        del damaged[rng.randrange(len(damaged)) :]
    (copy / name).write_bytes(damaged)
    with pytest.raises(DamagedCacheError, match=f"{name} .* is not the file that .* was written for"):
        open_cache(policy_folder, copy).require_whole(name.removesuffix(".safetensors"))
    with caplog.at_level(logging.WARNING):
        prepare(policy_folder, copy)
    assert f"{name} ({len(damaged)} bytes) is not the file" in caplog.text
    assert "Computing 1 of 7 parts" in caplog.text
    assert contents(copy) == before


RECORD = f"{shard_name(2)}.json"
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "record cut": lambda folder: (folder / RECORD).write_text((folder / RECORD).read_text()[:40]),
    "record no text": lambda folder: (folder / RECORD).write_bytes(b"\xff\xfe"),
    "record of another shard": lambda folder: shutil.copy(folder / f"{shard_name(1)}.json", folder / RECORD),
    "shard absent": lambda folder: (folder / f"{shard_name(2)}.safetensors").unlink(),
    "record absent": lambda folder: (folder / RECORD).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_shard_that_does_not_fit_its_record_is_computed_anew(policy_folder, copy, damage):
    before = contents(copy)
    DAMAGES[damage](copy)
    with pytest.raises(DamagedCacheError, match=shard_name(2)):
        open_cache(policy_folder, copy).require_whole(shard_name(2))
    assert cache_run.fill(policy_folder, copy, HIDDEN) == [2]
    assert contents(copy) == before


def test_shard_with_its_record_from_another_cache_is_computed_anew(policy_folder, copy, tmp_path):
    rows = trajectories(cache_run.N_ROWS, seed=5)
    other = prepare(policy_folder, tmp_path / "other", rows).folder
    before = contents(copy)
    for ending in ("json", "safetensors"):
        shutil.copy(other / f"{shard_name(0)}.{ending}", copy)
    assert cache_run.fill(policy_folder, copy, HIDDEN) == [0]
    assert contents(copy) == before


def test_manifest_that_is_cut_is_refused(policy_folder, copy):
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(DamagedCacheError, match=r"manifest.json is not the JSON that was written.*delete its folder"):
        prepare(policy_folder, copy)


def start(policy: Path, folder: Path, kill_at_file: str | None = None) -> int:
    command = [sys.executable, "-m", "tests.training.cache_run", str(policy), str(folder), HIDDEN]
    command += [] if kill_at_file is None else [kill_at_file]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=120, check=False).returncode


@pytest.mark.parametrize(
    "ending",
    [
        f".{shard_name(3)}.safetensors.partial",  # the shard lies there under its unfinished name
        f"{shard_name(3)}.json.partial",  # the shard is in place, its record is not
    ],
)
def test_killed_computation_keeps_its_finished_shards_and_goes_on(policy_folder, whole, tmp_path, ending):
    folder = tmp_path / "cache"
    assert start(policy_folder, folder, ending) == -9
    assert sorted(path.stem for path in folder.glob("*.json")) == [HEAD, "manifest", *map(shard_name, range(3))]
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("shard-0000[012].*")}
    assert cache_run.fill(policy_folder, folder, HIDDEN) == [3, 4, 5]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert {name: data for name, data in contents(folder).items() if not name.startswith(".")} == contents(whole)


def test_model_without_safetensors_has_no_hash(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no \.safetensors file, whose hash a reference cache is kept by"):
        hash_model(tmp_path)


def test_rows_with_one_id_twice_are_refused(policy_folder, copy):
    rows = trajectories(cache_run.N_ROWS)
    rows[1] = dataclasses.replace(rows[1], row_id=0)
    with pytest.raises(ValueError, match="23 rows have 22 different row ids"):
        prepare(policy_folder, copy, rows)


def test_run_from_a_file_leaves_its_cache_in_the_run_folder_and_a_second_run_takes_it_up(
    policy_folder, tmp_path, caplog
):
    source = tmp_path / "rows.jsonl"
    row = {"prompt": "t4 t5", "action_spans": [[2, 5]], "finish_reason": "stop"}
    lines = [{**row, "task_id": f"{i}", "input_ids": [4, 5, 6 + i, 7, 2], "reward": float(i % 2)} for i in range(6)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"train_data": [str(source)], "max_steps": 2, "max_length": 32, "reference_from": HIDDEN}
    with caplog.at_level(logging.WARNING):
        run_dir = train_oreo(tiny_config(policy_folder, tmp_path / "first", **changes))
        cache = run_dir / "reference_cache"
        assert sorted(path.name for path in cache.glob("*.safetensors")) == [
            "head.safetensors",
            f"{shard_name(0)}.safetensors",
        ]
        train_oreo(tiny_config(policy_folder, tmp_path / "second", reference_cache=str(cache), **changes))
    assert caplog.text.count("Computing") == 1
