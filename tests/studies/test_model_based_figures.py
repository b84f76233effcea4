"""Tables and pictures of the model-based studies, from files alone."""

from pathlib import Path

import pytest

from posttrain.evaluation.study_figures.model_based import (
    best_rate,
    imagined_table,
    learning_table,
    online_table,
    panflute_table,
)
from posttrain.evaluation.study_files import StudyRun, append_result, begin_study, read_study
from posttrain.evaluation.study_report import write_study_report
from posttrain.studies.model_based.config import ModelTheoremConfig
from posttrain.studies.model_based.seed_curves import stack_dir, write_seed_curves
from posttrain.studies.model_based.theorem import run_model_theorem


def panflute_run(folder: Path) -> StudyRun:
    begin_study(folder, "panflute", {"n_pipes": 5, "n_eval_steps": 100})
    for method, rates in (("replay", (0.0, 0.02)), ("learned", (0.19, 0.19))):
        for seed, rate in enumerate(rates):
            row = {"reward_rate": rate, "reward_rate_with_chance": rate + 0.04, "cpu_s": 3.0}
            append_result(folder, {"method": method, "seed": seed, "n_transitions": 4000, **row})
        lines = [
            f'{{"step": {s}, "cpu_s": 1.0, "eval_reward_rate/0": 0.0, "eval_reward_rate/1": 0.{s}}}' for s in (1, 2)
        ]
        stack = stack_dir(folder, f"m-4000/{method}")
        stack.mkdir(parents=True)
        (stack / "metrics.jsonl").write_text('{"step": 1, "loss/td": 0.5}\n' + "\n".join(lines) + "\n")
        write_seed_curves(folder, f"m-4000/{method}", 2)
    return read_study(folder)


def test_optimum_of_panflute_is_one_reward_per_circle_after_the_first(tmp_path: Path) -> None:
    assert best_rate(panflute_run(tmp_path)) == pytest.approx(0.19)


def test_table_gives_the_mean_with_its_interval_over_seeds(tmp_path: Path) -> None:
    # Two seeds 0 and 0.02: deviation 0.01414, t(1) = 12.706, half width 12.706 · 0.01414 / sqrt 2 = 0.127.
    table = panflute_table(panflute_run(tmp_path))
    assert table.rows[0] == ("m = 4000, replay", "0.010 [-0.117, 0.137]", "0.00 0.02", "0.050", "3.0")
    assert table.rows[1][1] == "0.190 [0.190, 0.190]"


def test_curves_of_a_stack_are_split_by_seed(tmp_path: Path) -> None:
    curves = panflute_run(tmp_path).curves["m-4000/replay"]
    assert curves[0]["eval_reward_rate"] == ((1.0, 0.0), (2.0, 0.0))
    assert curves[1]["eval_reward_rate"] == ((1.0, 0.1), (2.0, 0.2))
    assert "loss/td" not in curves[0]


def test_report_of_panflute_is_a_page_with_its_pictures(tmp_path: Path) -> None:
    panflute_run(tmp_path)
    page = write_study_report(tmp_path, tmp_path / "report").read_text()
    assert "learned model" in page
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {"panflute.png", "curves.png"}


def test_report_of_the_theorem_counts_no_violations(tmp_path: Path) -> None:
    run_model_theorem(ModelTheoremConfig(output_dir=tmp_path, n_true_models=3))
    run = read_study(tmp_path)
    assert len(run.rows) == 18
    assert sum(row["n_violations"] for row in run.rows) == 0
    assert all(row["strict_share"] == 0 for row in run.rows if row["method"] == "tabular")
    assert "satisfy Bellman" in write_study_report(tmp_path, tmp_path / "report").read_text()


def test_online_and_imagined_tables_name_what_was_compared(tmp_path: Path) -> None:
    begin_study(tmp_path / "a", "worlds-online", {})
    begin_study(tmp_path / "b", "imagined-values", {})
    for seed in (0, 1):
        numbers = {"reward_rate": 0.1, "reward_rate_with_chance": 0.1, "cpu_s": 1.0}
        append_result(tmp_path / "a", {"method": "learned", "seed": seed, "replay_ratio": 4, **numbers})
        numbers = {"auc": 0.7, "brier": 0.2, "auc_half_way": 0.6, "brier_half_way": 0.22}
        append_result(tmp_path / "b", {"method": "perfect", "seed": seed, **numbers})
    assert online_table(read_study(tmp_path / "a")).rows[0][:2] == ("learned model, 4 a step", "0.100 [0.100, 0.100]")
    assert imagined_table(read_study(tmp_path / "b")).rows[0][1] == "0.700 [0.700, 0.700]"
    write_study_report(tmp_path / "b", tmp_path / "report")
    assert (tmp_path / "report" / "imagined.png").exists()


def test_learning_table_averages_what_follows_the_first_update_and_compares_by_seed(tmp_path: Path) -> None:
    begin_study(tmp_path, "worlds-online", {"n_first_steps": 1000})
    for method, after in (("replay", (0.0, 0.1)), ("learned", (0.2, 0.5))):
        numbers = {"reward_rate": after[1], "reward_rate_with_chance": 0.0, "cpu_s": 1.0}
        for seed in (0, 1):
            append_result(tmp_path, {"method": method, "seed": seed, "replay_ratio": 1, **numbers})
        rates = {1000: 9.0, 1500: after[0], 2000: after[1]}  # the first is from before the first update
        lines = [f'{{"step": {s}, "eval_reward_rate/0": {x}, "eval_reward_rate/1": {x}}}' for s, x in rates.items()]
        stack = stack_dir(tmp_path, f"ratio-1/{method}")
        stack.mkdir(parents=True)
        (stack / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        write_seed_curves(tmp_path, f"ratio-1/{method}", 2)
    assert learning_table(read_study(tmp_path)).rows == (
        ("replay, 1 a step", "0.050 [0.050, 0.050]", "–"),
        ("learned model, 1 a step", "0.350 [0.350, 0.350]", "0.300 [0.300, 0.300]"),
    )
