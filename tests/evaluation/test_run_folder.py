"""Run folders: which files are read, which are missing, and which lines are refused."""

import json

import pytest

from posttrain.evaluation.run_folder import (
    RunFolderError,
    copy_files,
    load_run,
    read_curves,
    read_solutions,
    seed_folders,
)
from tests.evaluation.synthetic_run import write_run, write_study

SOLUTION = {
    "task_id": "p",
    "grade": "correct",
    "tokens": ["1", "2", "\n"],
    "values": [0.1, 0.2, 0.3],
    "is_action": [False, True, True],
    "step_ends": [2],
}


def write_line(path, row):
    path.write_text(json.dumps(row) + "\n")
    return path


def test_a_study_pools_the_answers_of_its_seeds(tmp_path):
    run = load_run(write_study(tmp_path / "study", seeds=2))
    assert [folder.name for folder in run.seed_folders] == ["seed-0", "seed-1"]
    assert {record.seed for record in run.answers["oreo/greedy", 1]} == {0, 1}
    assert len(run.curves["oreo"]) == 2
    assert {folder: len(own) for folder, own in run.solutions.items()} == {"seed-0": 400, "seed-1": 400}
    assert run.missing == ()


def test_seed_folders_are_ordered_by_number_and_others_are_passed_over(tmp_path):
    for name in ("seed-10", "seed-2", "seed-x", "report"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in seed_folders(tmp_path)] == ["seed-2", "seed-10"]


def test_missing_files_are_listed_with_their_place(tmp_path):
    folder = write_run(tmp_path / "run", seed=0)
    (folder / "values.jsonl").unlink()
    (folder / "dpo" / "metrics.jsonl").unlink()
    run = load_run(folder)
    assert set(run.missing) == {"values.jsonl", "dpo/metrics.jsonl"}
    assert run.solutions == {}
    assert "dpo" not in run.curves


def test_a_run_that_is_no_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a run folder with answers"):
        load_run(tmp_path / "nowhere")


def test_curves_hold_the_numbers_and_pass_over_texts_and_booleans(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 2.5, "note": "x", "is_last": false}\n{"step": 3, "loss": 2, "value/mean": 0.5}\n'
    )
    assert read_curves(path) == {"loss": ((1.0, 2.5), (3.0, 2.0)), "value/mean": ((3.0, 0.5),)}


def test_a_metrics_line_without_step_is_named(tmp_path):
    path = write_line(tmp_path / "metrics.jsonl", {"loss": 1.0})
    with pytest.raises(RunFolderError, match=r"metrics.jsonl:1: step: got None"):
        read_curves(path)


def test_states_run_from_the_end_of_the_prompt_to_the_token_before_the_last(tmp_path):
    tokens = ["2+2=", "\n", "4", "\n", "#4", "\n"]
    row = {"tokens": tokens, "values": [0.0] * 6, "is_action": [False, False] + [True] * 4, "step_ends": [3, 5]}
    (solution,) = read_solutions(write_line(tmp_path / "values.jsonl", SOLUTION | row))
    assert list(solution.states()) == [1, 2, 3, 4]
    assert solution.step_states() == (3,)  # the line end at 5 is the last token: no state follows it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [0.1, 0.2]}, "3 tokens, 2 values and 3 is_action: expected one of each per token"),
        ({"values": [0.1, float("nan"), 0.3]}, "values: not all are finite"),
        ({"step_ends": [3]}, r"step_ends: got \[3\], expected rising token indexes below 3"),
        ({"step_ends": [2, 1]}, r"step_ends: got \[2, 1\]"),
        ({"grade": "good"}, "'good' is not a valid Grade"),
    ],
)
def test_a_bad_solution_is_named_with_its_line(tmp_path, changes, message):
    with pytest.raises(RunFolderError, match=r"values.jsonl:1: " + message):
        read_solutions(write_line(tmp_path / "values.jsonl", SOLUTION | changes))


def test_a_solution_without_step_ends_says_so(tmp_path):
    row = {name: entry for name, entry in SOLUTION.items() if name != "step_ends"}
    with pytest.raises(RunFolderError, match="step_ends: missing"):
        read_solutions(write_line(tmp_path / "values.jsonl", row))


def test_copied_files_keep_their_places_and_a_plain_path_must_be_there(tmp_path):
    run, kept = tmp_path / "run", tmp_path / "kept"
    for name in ("run.json", "sft/metrics.jsonl", "sft/weights.bin", "oreo/metrics.jsonl"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    copy_files(run, kept, ("run.json", "*/metrics.jsonl", "*.png"))
    found = {str(file.relative_to(kept)): file.read_text() for file in kept.rglob("*") if file.is_file()}
    assert found == {name: name for name in ("run.json", "sft/metrics.jsonl", "oreo/metrics.jsonl")}
    with pytest.raises(FileNotFoundError, match=r"pictures\.png"):
        copy_files(run, kept, ("pictures.png",))
