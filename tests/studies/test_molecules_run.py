"""`posttrain control molecules` from the command line to the report, with blocks and a reward that need no file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rdkit", reason="needs RDKit: pip install 'posttrain[molecules]'")

from posttrain.cli import main
from posttrain.control.molecules.rewards import RewardName
from posttrain.evaluation.study_files import read_study
from posttrain.evaluation.study_report import write_study_report
from posttrain.studies.molecules.config import BlockSet, Method, MoleculesConfig
from posttrain.studies.molecules.run import run_molecules


def small_config(folder: Path, **changes) -> MoleculesConfig:
    options = {
        "output_dir": folder,
        "blocks": BlockSet.SMALL,
        "reward": RewardName.QED,
        "threshold": 0.5,
        "max_blocks": 4,
        "methods": (Method.TB, Method.RANDOM),
        "seeds": (0, 1),
        "n_steps": 4,
        "batch_size": 4,
        "eval_steps": 2,
        "width": 8,
        "n_rounds": 2,
    }
    return MoleculesConfig(**{**options, **changes})


def test_study_writes_a_row_and_the_best_molecules_of_every_run(tmp_path: Path) -> None:
    run_molecules(small_config(tmp_path))
    study = read_study(tmp_path)
    assert study.name == "molecules"
    assert (study.config["reward_floor"], study.config["reward_scale"], study.config["exponent"]) == (0.01, 1.0, 10.0)
    assert [(row["method"], row["seed"]) for row in study.rows] == [
        ("tb", 0), ("random", 0), ("tb", 1), ("random", 1),
    ]  # fmt: skip
    for row in study.rows:
        assert row["n_evaluated"] == 16  # 4 steps of 4 molecules
        best = [
            json.loads(line)
            for line in (tmp_path / row["method"] / f"seed-{row['seed']}" / "best.jsonl").read_text().splitlines()
        ]
        assert len(best) == row["n_distinct"]
        scores = [entry["score"] for entry in best]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores[:10]) / 10 == pytest.approx(row["top_10"])
    # Evaluations at 2 and at the end, 4.
    assert study.curves["tb"][0]["eval_n_evaluated"] == ((2.0, 8.0), (4.0, 16.0))


def test_study_goes_on_with_the_runs_that_have_no_result(tmp_path: Path) -> None:
    run_molecules(small_config(tmp_path, seeds=(0,)))
    first = (tmp_path / "results.jsonl").read_text()
    run_molecules(small_config(tmp_path))
    rows = (tmp_path / "results.jsonl").read_text()
    assert rows.startswith(first) and len(rows.splitlines()) == 4
    with pytest.raises(ValueError, match="another exponent"):
        run_molecules(small_config(tmp_path, exponent=3.0))


def test_same_seed_gives_the_same_molecules(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_molecules(small_config(tmp_path / name, seeds=(3,), methods=(Method.TB,)))
    a, b = ((tmp_path / name / "tb/seed-3/best.jsonl").read_text() for name in ("a", "b"))
    assert a == b


def test_report_draws_the_table_the_curves_and_the_molecules(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'posttrain[report]'")
    run_molecules(small_config(tmp_path / "run", n_steps=30))
    page = write_study_report(tmp_path / "run", tmp_path / "report").read_text()
    drawn = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert drawn == {"search.png", "diversity.png", "best_tb.png", "best_random.png"}
    assert page.count("<img") == 4
    assert "GFlowNet, TB" in page and "The 12 best molecules of random" in page


def test_command_names_the_place_of_missing_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POSTTRAIN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    code = main(["control", "molecules", "--output_dir", str(tmp_path / "run")])
    assert code != 0
    assert "no blocks_PDB_105.json in ../shared/data/molecules: point POSTTRAIN_DATA" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "methods and seeds need one entry each"),
        ({"batch_size": 1}, "batch_size 1 at least 2"),
        ({"exploration": 1.5}, "exploration 1.5 is a probability"),
        ({"n_kept": 0}, "n_replayed 32 and n_kept 0 are at least 1"),
    ],
)
def test_settings_that_cannot_run_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(tmp_path, **changes)
