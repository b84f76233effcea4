"""The hypergrid study's table and pictures, from files written by hand; and that its recipes are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from posttrain.config import load_config
from posttrain.evaluation.study_figures.hypergrid import result_tables
from posttrain.evaluation.study_files import append_result, begin_study, read_study, run_dir
from posttrain.evaluation.study_report import write_study_report
from posttrain.studies.hypergrid.config import HypergridConfig

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes/gflownet").glob("hypergrid*.yaml"))
GRID = {"n_dims": 2, "side": 8, "reward_floor": 0.1, "stop_rule": "forced"}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    begin_study(tmp_path, "hypergrid", GRID)
    for method, seed, tv, modes in (("tb", 0, 0.01, 4), ("tb", 1, 0.03, 4), ("ppo", 0, 0.6, 2), ("ppo", 1, 0.7, 4)):
        row = {"tv": tv, "l1": 2e-3, "modes": modes, "states": 1000 * (seed + 1), "updates": 10, "cpu_s": 1.5}
        append_result(tmp_path, {"method": method, "seed": seed, **row})
        folder = run_dir(tmp_path, method, seed)
        folder.mkdir(parents=True)
        points = [
            {"step": step, "time": 0.0, "cpu_s": 0.1 * step, "eval_tv": tv * 20 / step, "eval_modes": modes}
            for step in (10, 20)
        ]
        lines = [json.dumps({**point, "eval_states": 100 * point["step"]}) for point in points]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        target = np.full((8, 8), 1 / 63)
        target[7, 7] = np.nan
        save_file({"target": target, "learned": target}, folder / "arrays.safetensors")
    return tmp_path


def test_the_table_has_means_intervals_and_the_range_of_modes(study: Path):
    ((title, table),) = result_tables(read_study(study))
    assert title.startswith("n = 2, H = 8, R0 = 0.1, forced stops")
    # Of 0.01 and 0.03: mean 0.02, deviation 0.0141, half width 12.706 · 0.0141 / √2 = 0.127; a TV is not below 0.
    assert table.rows[0] == ("tb", "2", "0.0200 [0.0000, 0.1471]", "2.0e-03", "4", "1,500", "10", "2")
    assert table.rows[1][4] == "2 to 4"


def test_the_page_has_a_picture_of_densities_distances_and_modes(study: Path, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    page = write_study_report(study, tmp_path / "report").read_text()
    for name in ("densities", "tv", "modes"):
        assert (tmp_path / "report" / f"{name}.png").stat().st_size > 10_000
        assert f'<section id="{name}"' in page


def test_a_study_without_maps_says_so(study: Path, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    for file in study.glob("**/arrays.safetensors"):
        file.unlink()
    assert "drawn for grids of two dimensions" in write_study_report(study, tmp_path / "report").read_text()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_and_has_the_papers_grid(recipe: Path):
    config = load_config(HypergridConfig, ["--config", str(recipe)], prog="posttrain control hypergrid")
    assert (config.side, config.width, config.stop_rule) == (8, 256, "forced")
    assert {"fm", "tb", "subtb", "mcmc", "ppo", "soft_ppo", "mars"} <= set(config.methods)
    assert config.reward_floor == {2: 0.1, 4: 0.001}[config.n_dims]
