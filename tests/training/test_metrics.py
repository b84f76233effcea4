from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from posttrain.training.metrics import METRICS, SUPERSEDED, read_metrics
from posttrain.training.metrics_callback import MetricsFile


def _log(run_dir: Path, step: int, logs: dict[str, object], *, is_rank_0: bool = True) -> None:
    state = TrainerState(global_step=step, is_world_process_zero=is_rank_0)
    MetricsFile().on_log(_args(run_dir), state, TrainerControl(), logs=logs)


def _begin(run_dir: Path, step: int) -> None:
    MetricsFile().on_train_begin(_args(run_dir), TrainerState(global_step=step), TrainerControl())


def _args(run_dir: Path) -> TrainingArguments:
    return TrainingArguments(str(run_dir), report_to="none", use_cpu=True)


def _steps(path: Path) -> list[float]:
    return [row["step"] for row in read_metrics(path)]


def test_floats_are_read_back_exactly_when_logged(tmp_path: Path) -> None:
    third, tiny = 1 / 3, 5e-324
    _log(tmp_path, 7, {"loss": third, "grad_norm": tiny, "epoch": 1, "note": "text is no scalar"})
    [row] = read_metrics(tmp_path / METRICS)
    assert row.pop("time") > 0
    assert row == {"step": 7, "loss": third, "grad_norm": tiny, "epoch": 1}


def test_nan_and_infinity_are_kept_when_a_run_diverges(tmp_path: Path) -> None:
    _log(tmp_path, 1, {"loss": math.nan, "grad_norm": math.inf})
    [row] = read_metrics(tmp_path / METRICS)
    assert math.isnan(row["loss"])
    assert row["grad_norm"] == math.inf


def test_nothing_is_written_when_rank_is_not_0(tmp_path: Path) -> None:
    _log(tmp_path, 1, {"loss": 1.0}, is_rank_0=False)
    assert not (tmp_path / METRICS).exists()


def test_rows_past_the_resumed_step_move_aside_when_a_run_is_resumed(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        _log(tmp_path, step, {"loss": float(step)})
    _begin(tmp_path, step=4)
    _log(tmp_path, 6, {"loss": 60.0})
    assert _steps(tmp_path / METRICS) == [2, 4, 6]
    assert read_metrics(tmp_path / METRICS)[-1]["loss"] == 60.0
    assert _steps(tmp_path / SUPERSEDED) == [6, 8]


def test_end_of_training_summary_comes_once_when_a_finished_run_is_resumed(tmp_path: Path) -> None:
    for _ in range(2):
        _begin(tmp_path, step=0 if not (tmp_path / METRICS).exists() else 4)
        if not (tmp_path / METRICS).exists():
            _log(tmp_path, 4, {"loss": 1.0})
        _log(tmp_path, 4, {"train_runtime": 3.0, "train_loss": 1.0})
    rows = read_metrics(tmp_path / METRICS)
    assert [sorted(row) for row in rows] == [["loss", "step", "time"], ["step", "time", "train_loss", "train_runtime"]]


def test_all_rows_move_aside_when_a_folder_is_used_for_a_fresh_run(tmp_path: Path) -> None:
    _log(tmp_path, 2, {"loss": 1.0})
    _begin(tmp_path, step=0)
    assert _steps(tmp_path / METRICS) == []
    assert _steps(tmp_path / SUPERSEDED) == [2]


def test_line_cut_by_a_kill_is_dropped_when_the_run_is_resumed(tmp_path: Path) -> None:
    _log(tmp_path, 2, {"loss": 1.0})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')
    assert _steps(tmp_path / METRICS) == [2]
    _begin(tmp_path, step=2)
    _log(tmp_path, 4, {"loss": 1.0})
    assert _steps(tmp_path / METRICS) == [2, 4]


def test_read_names_the_line_when_a_row_is_broken(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text(json.dumps({"step": 1}) + "\n{broken\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not JSON"):
        read_metrics(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: expected an object with a 'step'"):
        read_metrics(path)
