import json
from pathlib import Path

import numpy as np
import pytest

from posttrain.evaluation.study_figures.beer import aligned, gain_table, result_tables
from posttrain.evaluation.study_files import append_result, begin_study, read_study, run_dir
from posttrain.evaluation.study_report import write_study_report


def write_beer(folder: Path) -> None:
    """Two methods, three seeds; BEER gains 1, 2 and 6."""
    begin_study(folder, "beer", {"task": "cheetah-run"})
    for method, returns in (("ddpg", (10.0, 20.0, 30.0)), ("ddpg_beer", (11.0, 22.0, 36.0))):
        for seed, value in enumerate(returns):
            row = {"return": value, "q_error": 1.0, "rank": 8.0, "beer/firing_rate": 0.25}
            append_result(folder, {"method": method, "seed": seed, **row})
            path = run_dir(folder, method, seed)
            path.mkdir(parents=True)
            lines = [{"step": step, "eval_return": value * step / 20} for step in (10, 20)]
            (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_gain_is_taken_seed_by_seed_with_its_own_interval(tmp_path: Path):
    write_beer(tmp_path)
    (row,) = gain_table(read_study(tmp_path)).rows
    # Gains 1, 2, 6: mean 3, deviation √7 = 2.6458, t(2) = 4.3027: 3 ± 4.3027 · 2.6458/√3 = 3 ± 6.57.
    assert row == ("ddpg_beer over ddpg", "3.0 [-3.6, 9.6]", "+1, +2, +6")


def test_table_gives_rates_in_per_cent_and_a_dash_for_what_was_not_measured(tmp_path: Path):
    write_beer(tmp_path)
    (_, table), _ = result_tables(read_study(tmp_path))
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert cells["fires, %"] == "25.00 [25.00, 25.00]"
    assert cells["effective rank"] == "–"
    assert cells["return"] == "20.0 [-4.8, 44.8]"  # deviation 10: 4.3027 · 10/√3 = 24.84


def test_curves_are_cut_to_the_steps_that_all_seeds_have():
    steps, values = aligned([((10, 1.0), (20, 2.0), (30, 3.0)), ((10, 5.0), (20, 6.0))])
    assert steps.tolist() == [10, 20]
    np.testing.assert_array_equal(values, [[1, 2], [5, 6]])


def test_report_draws_both_studies_from_their_files(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="pictures need the extra `report`")
    write_beer(tmp_path / "control")
    page = write_study_report(tmp_path / "control", tmp_path / "control" / "report").read_text()
    assert "cheetah-run: learning curves" in page
    assert "ddpg_beer over ddpg" in page
    begin_study(tmp_path / "grid", "beer-grid", {})
    for reward, error in (("cost", 0.5), ("goal", 0.25)):
        append_result(tmp_path / "grid", {"method": "dqn", "reward": reward, "seed": 0, "q_error": error})
    page = write_study_report(tmp_path / "grid", tmp_path / "grid" / "report").read_text()
    assert page.count("<table><caption>Reward") == 2
    assert "0.250" in page


def test_study_without_results_says_so(tmp_path: Path):
    begin_study(tmp_path, "beer-grid", {})
    assert "No run has ended yet." in write_study_report(tmp_path, tmp_path / "report").read_text()
