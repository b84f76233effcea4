"""`posttrain quickstart --smoke true` for real, in processes of its own: its files agree with each other."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.cli import VERBS, main, resolve
from posttrain.config import load_config
from posttrain.evaluation.records import group_records, read_records
from posttrain.evaluation.run_folder import read_curves, read_solutions
from posttrain.schema import Grade
from posttrain.stages import Stage, StageError, Stages

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = REPOSITORY / "recipes" / "quickstart"
N_TEST = 30
POLICIES = ("sft", "rejection_sampling", "dpo", "oreo")
pytestmark = pytest.mark.timeout(1800)  # eleven commands, each of which imports torch and transformers
N_SAMPLES = 4  # of smoke/eval.yaml and smoke/eval_oreo.yaml


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The run folder, and what was printed."""
    pytest.importorskip("reasoning_gym", reason="the quickstart's problems are reasoning-gym's")
    run = tmp_path_factory.mktemp("quickstart") / "run"
    command = [sys.executable, "-m", "posttrain", "quickstart", "--smoke", "true"]
    outcome = subprocess.run(
        [*command, "--output", str(run), "--n_test", str(N_TEST)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return run, outcome.stdout


@pytest.mark.slow
def test_all_four_policies_answer_every_held_out_problem(finished):
    run, _ = finished
    answers = group_records(read_records(run / "answers.jsonl"))
    tasks = {f"remainders/test/{number}" for number in range(1, N_TEST + 1)}
    for policy in POLICIES:
        assert {record.task_id for record in answers[f"{policy}/greedy", 1]} == tasks
        assert len(answers[f"{policy}/greedy", 1]) == N_TEST
        assert len(answers[f"{policy}/sample", 1]) == N_TEST * N_SAMPLES
    assert len(answers["oreo/best_of_n", N_SAMPLES]) == len(answers["oreo/beam", 4]) == N_TEST  # 2 x 2
    assert len(answers["sft_by_value/best_of_n", N_SAMPLES]) == len(answers["sft_by_value/beam", 4]) == N_TEST
    assert ("sft/best_of_n", N_SAMPLES) not in answers  # there the policy is alone


@pytest.mark.slow
def test_the_pages_accuracies_are_those_of_the_answers_on_file(finished):
    run, printed = finished
    table = (run / "report" / "results.md").read_text(encoding="utf-8")
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    for (method, budget), group in group_records(read_records(run / "answers.jsonl")).items():
        accuracy = f"{100 * sum(record.grade is Grade.CORRECT for record in group) / len(group):.1f}"
        tokens = f"{sum(record.n_generated_tokens for record in group) / len(group):.1f}"
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {method} | {budget} | {N_TEST} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[4].split(" ")[0] == accuracy
        assert tokens in cells
        assert row in printed
        assert re.search(rf"{re.escape(method)}</th><td>{budget}</td>.*?<td>{accuracy}&nbsp;\[", page)


@pytest.mark.slow
def test_the_run_card_names_the_command_and_the_hash_of_every_input(finished):
    run, _ = finished
    card = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert card["config"]["n_test"] == str(N_TEST)
    assert {Path(source).name for source in card["data_sha256"]} == {
        "base.jsonl",
        "sft.jsonl",
        "train_problems.jsonl",
        "test_problems.jsonl",
    }


@pytest.mark.slow
def test_every_policy_leaves_a_learning_curve_and_values_lie_along_answers_to_held_out_problems(finished):
    run, _ = finished
    for policy in POLICIES:
        assert "loss" in read_curves(run / policy / "metrics.jsonl")
    solutions = read_solutions(run / "values.jsonl")
    assert [solution.task_id for solution in solutions] == [f"remainders/test/{n}" for n in range(1, N_TEST + 1)]


@pytest.mark.slow
def test_every_printed_command_is_one_that_the_command_line_reads(finished, monkeypatch):
    run, printed = finished
    monkeypatch.chdir(REPOSITORY)
    commands = [shlex.split(found) for found in re.findall(r"s\] (posttrain .*)", printed)]
    assert len(commands) == 11  # base, sft, collect, three ways to learn, five evaluations
    configs = {verb.name: verb for verb in VERBS}
    for _, *words in commands:
        n_words = 2 if words[0] == "eval" else 1
        name, rest = " ".join(words[:n_words]), words[n_words:]
        config = load_config(resolve(configs[name].config), rest, prog=f"posttrain {name}", summary="")
        assert config.seed == 0
        assert Path(config.model).is_relative_to(run)


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_is_refused(finished, capsys, monkeypatch):
    run, _ = finished
    monkeypatch.chdir(REPOSITORY)
    before = sorted(run.rglob("*"))
    assert main(["quickstart", "--smoke", "true", "--output", str(run)]) == 2
    assert f"{run} is not empty: remove it, or name another --output" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


def test_recipes_that_are_not_there_are_named_before_anything_is_written(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["quickstart", "--output", str(run), "--recipes", str(tmp_path / "none")]) == 2
    assert "no recipes at" in capsys.readouterr().err
    assert not run.exists()


def test_a_stage_that_fails_shows_the_end_of_its_log(tmp_path):
    stages = Stages(tmp_path / "logs", recipes=tmp_path, is_smoke=False)
    (tmp_path / "broken.yaml").write_text("no_such_key: 1\n")
    with pytest.raises(StageError, match=r"(?s)stage broken ended with exit code 2; .*broken\.log:\n.*no_such"):
        stages.run(Stage("broken", "eval run", ()))


def test_each_stage_has_a_smoke_recipe_with_the_same_keys():
    for recipe in RECIPES.glob("*.yaml"):
        names = [
            {line.partition(":")[0] for line in path.read_text().splitlines() if not line.startswith("#")}
            for path in (recipe, RECIPES / "smoke" / recipe.name)
        ]
        assert names[0] == names[1], recipe.name
