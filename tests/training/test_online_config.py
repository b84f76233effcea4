"""Settings of online runs that contradict each other stop the run, with the fix in the message."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config import ConfigError, load_config
from posttrain.training.visual_pg_config import VisualPgConfig
from tests.training.tiny_online import online_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates_per_round": 2}, "set objective grpo or grpo_token_mean, or updates_per_round 1"),
        ({"kl": "rollout"}, "this KL and its gradient are exactly 0: set kl ref, or alpha 0"),
        ({"samples_per_prompt": 1}, "samples_per_prompt is 1, needs at least 2"),
        ({"alpha": -0.1}, "alpha is -0.1, it must not be negative"),
        ({"max_steps": 5}, "max_steps is 5, but a run has rounds"),
        (
            {"updates_per_round": 2, "objective": "grpo", "save_strategy": "steps", "save_steps": 3},
            "save_steps is 3, which falls between two updates .* a multiple of updates_per_round, 2",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        online_config(tmp_path / "policy", tmp_path, **changes)


@pytest.mark.parametrize("key", ["max_length", "on_bad_row", "max_dropped_fraction"])
def test_keys_of_rows_on_file_are_unknown_to_a_run_that_reads_none(key: str):
    given = ["--model", "m", "--visual_tokenizer", "t", "--output_dir", "o", "--rounds", "1", f"--{key}", "1"]
    with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
        load_config(VisualPgConfig, given, prog="posttrain visual-pg")


def test_steps_of_a_run_are_its_rounds_times_its_updates(tmp_path: Path):
    config = online_config(tmp_path / "policy", tmp_path, rounds=5, updates_per_round=3, objective="grpo")
    assert config.max_steps == 15
