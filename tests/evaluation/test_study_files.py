from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain.evaluation.run_folder import RunFolderError
from posttrain.evaluation.study_files import append_result, begin_study, is_done, read_results, read_study, run_dir
from posttrain.evaluation.study_report import write_study_report


def test_study_reads_back_its_rows_and_curves_by_method_and_seed(tmp_path: Path) -> None:
    begin_study(tmp_path, "grid", {"side": 8, "seeds": (0, 1)})
    for method, seed, tv in (("tb", 1, 0.25), ("tb", 0, 0.5), ("fm", 0, 0.125)):
        folder = run_dir(tmp_path, method, seed)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "tv": tv}) + "\n")
        append_result(tmp_path, {"method": method, "seed": seed, "tv": tv})
    run = read_study(tmp_path)
    assert (run.name, run.config, run.methods()) == ("grid", {"side": 8, "seeds": [0, 1]}, ("tb", "fm"))
    assert run.numbers("tv", method="tb") == [0.5, 0.25]  # by seed, not as written
    assert run.numbers("tv", method="tb", seed=1) == [0.25]
    assert run.numbers("l1") == []
    assert run.curves["tb"][1]["tv"] == ((10.0, 0.25),)
    assert is_done(tmp_path, method="fm", seed=0)
    assert not is_done(tmp_path, method="fm", seed=1)


def test_rows_that_many_write_at_once_are_whole(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        for place in range(50):
            append_result(tmp_path, {"method": "m", "seed": seed, "place": place, "padding": "x" * 500})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    rows = read_results(tmp_path)
    assert {(row["seed"], row["place"]) for row in rows} == {(s, p) for s in range(8) for p in range(50)}


def test_study_goes_on_with_its_config_and_refuses_another_by_name(tmp_path: Path) -> None:
    begin_study(tmp_path, "grid", {"side": 8})
    begin_study(tmp_path, "grid", {"side": 8})
    with pytest.raises(ValueError, match="is of a study with another side: name another output"):
        begin_study(tmp_path, "grid", {"side": 9})
    with pytest.raises(ValueError, match="is of the study 'grid', not of 'strings'"):
        begin_study(tmp_path, "strings", {"side": 8})


def test_broken_rows_are_named_by_their_line(tmp_path: Path) -> None:
    append_result(tmp_path, {"method": "m", "x": 1})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"method": "m", "x"')
    with pytest.raises(RunFolderError, match=r"results\.jsonl:2: not JSON.*delete the line"):
        read_results(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(RunFolderError, match=r'results\.jsonl:1: expected a JSON object with "method"'):
        read_results(tmp_path)


def test_folder_without_a_study_and_study_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no study\.json: expected what a `posttrain control`"):
        read_study(tmp_path)
    begin_study(tmp_path, "nameless", {})
    with pytest.raises(ValueError, match="nothing is drawn of a study called 'nameless'"):
        write_study_report(tmp_path, tmp_path / "report")
