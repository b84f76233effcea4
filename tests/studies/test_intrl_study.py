"""`posttrain control intrl`: what it refuses, what its rows say, and that it goes on and draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posttrain.control.integral.bayesian_quadrature import PriorMean
from posttrain.evaluation.study_figures.intrl_tables import slope, slopes_table
from posttrain.evaluation.study_files import read_study
from posttrain.evaluation.study_report import write_study_report
from posttrain.studies.intrl import experiments
from posttrain.studies.intrl.config import IntrlConfig
from posttrain.studies.intrl.plants import plants
from posttrain.studies.intrl.rules import PAPERS_MATERN, ClassicRule, MaternRule
from posttrain.studies.intrl.run import run_intrl


def small(output: Path) -> IntrlConfig:
    return IntrlConfig(
        output,
        rules=("trapezoid", "matern"),
        n_nodes=(5, 9),
        smoothness=(4,),
        lengthscales=(0.3,),
        seeds=(0, 1),
        n_iterations=8,
        n_calibration_segments=20,
        n_processes=1,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"n_nodes": (5, 6)},
            r"n_nodes \[6\]: Simpson's rule takes odd counts; give those, or leave simpson out of rules",
        ),
        ({"n_nodes": (2, 5)}, r"n_nodes \(2, 5\): give counts of 3 or more"),
        ({"rules": ("simson",)}, r"rules \['simson'\]: there are trapezoid, simpson"),
        ({"jitters": (-1e-8,)}, r"jitters \(-1e-08,\): variances, so 0 \(none\) or more"),
        ({"smoothness": (5,)}, "p is 4: Matérn kernels of smoothness"),
        ({"lengthscales": (0.0,)}, r"lengthscale is 0\.0: give a time above 0"),
        ({"segment_s": 0.0}, r"segment_s is 0\.0: give a length above 0 seconds"),
        ({"n_segments": 5}, r"n_segments 5.*three states have six products"),
        ({"seeds": ()}, r"seeds \(\).*needed one or more"),
    ],
)
def test_bad_settings_are_refused_with_their_fix(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        IntrlConfig(tmp_path, **settings)


def test_even_counts_are_taken_when_simpsons_rule_is_left_out(tmp_path):
    assert IntrlConfig(tmp_path, n_nodes=(4, 6), rules=("trapezoid", "matern")).n_nodes == (4, 6)


def test_measures_of_example_two_are_the_expectations_that_they_name():
    # P = P* + ε e2 e2': u − u* = −ε x_2 sin x_1, so E|u − u*| = ε E|x_2| E|sin x_1| = ε · 100 √(2/π) · 2/π for x of
    # standard deviation 100, within the 1 % of 10,000 draws. The estimated gap is ε, and the true one of order ε².
    plant = plants()["example_two"]
    numbers = {eps: plant.measure(plant.system.optimum + np.diag([0.0, eps])) for eps in (1e-3, 2e-3)}
    assert numbers[1e-3]["gain_error"] == pytest.approx(0.1 * np.sqrt(2 / np.pi) * 2 / np.pi, rel=0.02)
    assert numbers[1e-3]["estimated_gap"] == pytest.approx(1e-3, rel=1e-12)
    assert numbers[1e-3]["omega_error"] == pytest.approx(1e-3, rel=1e-12)
    assert numbers[2e-3]["true_gap"] / numbers[1e-3]["true_gap"] == pytest.approx(4, rel=1e-2)


def test_paired_rows_have_the_trapezoid_slope_on_the_same_recording(tmp_path):
    # Each doubling of the intervals (4 to 8) quarters the error, up to O(h²) of it.
    rows = list(experiments.paired(small(tmp_path), ClassicRule("trapezoid"), 0))
    by_system = {system: [row["omega_error"] for row in rows if row["system"] == system] for system in plants()}
    for errors in by_system.values():
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)


def test_error_bars_cover_because_the_cost_is_smoother_than_the_kernel(tmp_path):
    rule = MaternRule(3, 0.3, PriorMean.CONSTANT, 0.0)
    for row in experiments.calibration(small(tmp_path), rule, 0):
        assert row["coverage"] > 0.95
        assert 0.01 < row["score_rms"] < 1


def test_irregular_nodes_keep_both_ends_and_a_distance():
    for seed in range(20):
        nodes = experiments.irregular_nodes(9, 0.1, seed)
        assert (nodes[0], nodes[-1], len(nodes)) == (0.0, 0.1, 9)
        assert np.diff(nodes).min() > 0.1 / 800


@pytest.mark.slow
def test_study_reproduces_the_recorded_errors_goes_on_without_new_rows_and_draws(tmp_path, capsys):
    config = small(tmp_path / "run")
    run_intrl(config)
    run = read_study(config.output_dir)
    free = {"experiment": "data_free", "n_nodes": 9}
    # The authors' arrays: 2.942e-4 (trapezoid) and, with their jitter, 7.679e-6.
    assert run.numbers("omega_error", **free, method="trapezoid")[0] == pytest.approx(2.942e-4, rel=1e-3)
    assert run.numbers("omega_error", **free, method=PAPERS_MATERN.method)[0] == pytest.approx(7.679e-6, rel=2e-2)
    assert run.numbers("true_gap", **free, method="trapezoid")[0] == pytest.approx(1.02803e-8, rel=1e-4)
    assert float(slope(run, "omega_error", experiment="data_free", method="trapezoid")) == pytest.approx(-2, abs=0.01)
    by_data = next(row for row in slopes_table(run, of="from_data").rows if row[0] == "trapezoid")
    assert by_data[3].startswith("-2.00 [")
    assert "| trapezoid | -2 | -2.00 |" in capsys.readouterr().out

    run_intrl(replace(config, n_processes=2))
    assert len(read_study(config.output_dir).rows) == len(run.rows)
    page = write_study_report(config.output_dir, tmp_path / "report").read_text(encoding="utf-8")
    assert page.count("<img") == 5
    with pytest.raises(ValueError, match="of a study with another seeds"):
        run_intrl(replace(config, seeds=(3,)))
