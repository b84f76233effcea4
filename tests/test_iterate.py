"""`posttrain iterate` for real, two rounds on a random tiny model: who starts from what, and what a stop costs."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from posttrain.data import remainders
from posttrain.data.rows import problem_to_json
from posttrain.data.sources import write_jsonl
from posttrain.evaluation.records import group_records, read_records

REPOSITORY = Path(__file__).resolve().parent.parent
N_TRAIN, N_TEST = 12, 8
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A folder with a random model, problems, and recipes of a few steps."""
    pytest.importorskip("reasoning_gym", reason="the problems are reasoning-gym's")
    folder = tmp_path_factory.mktemp("iterate")
    vocabulary = remainders.tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(remainders.small_llama(vocabulary)).save_pretrained(folder / "model")
    vocabulary.save_pretrained(folder / "model")
    problems = remainders.chain_sums(N_TRAIN + N_TEST, n_operations=remainders.N_OPERATIONS, seed=0)
    for name, part in (("train", problems[:N_TRAIN]), ("test", problems[N_TRAIN:])):
        rows = map(problem_to_json, remainders.graded_problems(part, split=name))
        write_jsonl(folder / f"{name}.jsonl", rows)
    smoke = REPOSITORY / "recipes/quickstart/smoke"
    (folder / "recipes").mkdir()
    for name in ("collect", "oreo", "eval"):
        shutil.copy(smoke / f"{name}.yaml", folder / "recipes")
    return folder


def iterate(start: Path, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "posttrain", "iterate", "--iterations", "2", "--recipes", str(start / "recipes")]
    recipes = [word for verb in ("collect", "eval") for word in (f"--{verb}_recipe", verb)]
    problems = ["--problems", str(start / "train.jsonl"), "--test_problems", str(start / "test.jsonl")]
    where = ["--model", str(start / "model"), "--output", str(start / name), "--train_recipe", "oreo"]
    return subprocess.run(
        [*command, *recipes, *problems, *where, *more], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def pooled(start) -> Path:
    outcome = iterate(start, "pooled", "--data", "pool", "--reference", "keep", "--value", "fresh")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return start / "pooled"


@pytest.fixture(scope="module")
def replaced(start) -> Path:
    outcome = iterate(start, "replaced")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return start / "replaced"


def card(run: Path, number: int) -> dict:
    return json.loads((run / f"round-{number}/oreo/run.json").read_text())["config"]


def test_each_round_samples_from_the_policy_of_the_one_before(start, pooled):
    models = [json.loads((pooled / f"round-{n}/samples.summary.json").read_text())["run"]["model"] for n in (1, 2)]
    assert models == [str(start / "model"), str(pooled / "round-1/oreo/policy")]
    first, second = ((pooled / f"round-{n}/samples.jsonl").read_text() for n in (1, 2))
    assert first != second


def test_pooling_and_keeping_learn_from_all_samples_beside_the_first_model(start, pooled):
    samples = [str(pooled / f"round-{n}/samples.jsonl") for n in (1, 2)]
    assert (card(pooled, 1)["train_data"], card(pooled, 2)["train_data"]) == (samples[:1], samples)
    assert card(pooled, 1)["reference"] == card(pooled, 2)["reference"] == str(start / "model")
    assert card(pooled, 2)["model"] == str(pooled / "round-1/oreo/policy")
    assert card(pooled, 2)["value_model"] is None


def test_the_run_card_names_the_problems_by_their_hash(start, replaced):
    hashes = json.loads((replaced / "run.json").read_text())["data_sha256"]
    assert hashes == {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (start / "train.jsonl", start / "test.jsonl")
    }


def test_replacing_and_resetting_learn_from_the_newest_samples_beside_the_newest_policy(replaced):
    newest = str(replaced / "round-1/oreo/policy")
    assert card(replaced, 2)["train_data"] == [str(replaced / "round-2/samples.jsonl")]
    assert (card(replaced, 2)["model"], card(replaced, 2)["reference"]) == (newest, newest)
    assert card(replaced, 2)["value_model"] == str(replaced / "round-1/oreo/value")


def test_the_report_compares_every_round_on_the_same_problems(pooled):
    answers = group_records(read_records(pooled / "answers.jsonl"))
    for number in (0, 1, 2):
        assert len(answers[f"round_{number}/greedy", 1]) == N_TEST
    assert "round_2/greedy" in (pooled / "report/results.md").read_text()


def test_a_stopped_run_goes_on_and_ends_with_the_same_answers(start, pooled):
    stopped = start / "stopped"
    shutil.copytree(pooled, stopped)
    finished = stopped / "finished.jsonl"
    finished.write_text(
        "".join(line + "\n" for line in finished.read_text().replace(str(pooled), str(stopped)).splitlines()[:-1])
    )
    (stopped / "round-2/answers.jsonl").write_text("half a line")  # killed within the last evaluation
    (stopped / "answers.jsonl").unlink()
    outcome = iterate(start, "stopped", "--data", "pool", "--reference", "keep", "--value", "fresh")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.count("finished before") == 6  # of 7 stages
    assert (stopped / "answers.jsonl").read_text() == (pooled / "answers.jsonl").read_text()


def test_going_on_with_other_settings_is_refused(start, pooled):
    outcome = iterate(start, "pooled", "--data", "pool", "--reference", "keep", "--value", "fresh", "--seed", "1")
    assert outcome.returncode == 2
    assert "round_0_eval was run as eval" in outcome.stderr and "name another --output" in outcome.stderr
