"""What /v1/values says its numbers are measured in, by the card of the run that trained the value model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from posttrain.provenance import write_run_card
from posttrain.serve.serve_config import ServeConfig
from posttrain.serve.value_units import ValueUnits, units_of
from tests.serve.tiny_server import served
from tests.training.tiny_oreo import tiny_config


def value_folder(run: Path) -> Path:
    (run / "value").mkdir(parents=True)
    return run / "value"


def test_beta_and_reward_map_are_those_of_the_run_that_wrote_the_model(tmp_path: Path) -> None:
    path = value_folder(tmp_path / "run")
    config = tiny_config(tmp_path / "policy", tmp_path / "run", beta=0.05, reward_map=(2, -1))
    write_run_card(tmp_path / "run", config.to_dict(), {})
    assert units_of(path) == units_of(str(path)) == ValueUnits(beta=0.05, reward_map=(2.0, -1.0))


@pytest.mark.parametrize("card", [None, {}, [], {"config": {"beta": 0.1}}, {"config": {"reward_map": [1, 0]}}])
def test_nothing_is_known_without_a_card_that_says_both(tmp_path: Path, card: Any) -> None:
    path = value_folder(tmp_path / "run")
    if card is not None:
        (tmp_path / "run" / "run.json").write_text(json.dumps(card))
    assert units_of(path) == units_of("owner/model") == units_of(None) == ValueUnits(None, None)


def test_card_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = value_folder(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is no JSON"):
        units_of(path)


def test_reply_names_the_units_or_null(config: ServeConfig, tmp_path: Path, tiny_models: tuple[Path, Path]) -> None:
    run = tmp_path / "run"
    write_run_card(run, {"beta": 0.05, "reward_map": (2, -1)}, {})
    shutil.copytree(tiny_models[1], run / "value")
    for path, expected in ((run / "value", [0.05, [2.0, -1.0]]), (tiny_models[1], [None, None])):
        with served(replace(config, value_model=str(path))) as own:
            reply = httpx.post(f"{own.url}/v1/values", json={"input": {"prompt": "1+2="}}).json()
        assert [reply["unit"], reply["beta"], reply["reward_map"]] == ["reward", *expected]
