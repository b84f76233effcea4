"""Collection: the rows it writes, how it goes on after a stop, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from posttrain.data.audit import prepare
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import OnBadRow, RowsError, read_rows
from posttrain.rewards.pool import GradingPool
from posttrain.rollout.collect import CollectConfig, collect, collect_rows, stream_of
from posttrain.rollout.tally import Tally
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import Sample, SamplingParams
from posttrain.schema import FinishReason, Problem

REPOSITORY = Path(__file__).resolve().parents[2]


def write_problems(path: Path, n: int) -> Path:
    rows = [
        {"task_id": f"sum/{i}", "prompt": f"{i}+{i % 7}=", "answer": str(i + i % 7), "grader": "final_number"}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> CollectConfig:
    return CollectConfig(
        model=str(model_folder),
        problems=str(write_problems(tmp_path / "problems.jsonl", 10)),
        output=tmp_path / "rows.jsonl",
        dtype="float32",
        device="cpu",
        batch_size=8,
        problems_per_chunk=3,
        samples_per_problem=4,
        max_new_tokens=16,
        seed=5,
    )


class ScriptedEngine:
    """A policy that says what it is told, for the rows around it; the engines have tests of their own."""

    def __init__(self, tokenizer, texts: list[str], finish_reason: FinishReason) -> None:
        self.samples = [
            Sample(tuple(ids), tuple(-0.5 for _ in ids), finish_reason, None)
            for ids in (tokenizer(text).input_ids for text in texts)
        ]
        self.streams: list[int] = []

    def sample(self, prompts, params, n, *, streams=None) -> list[list[Sample]]:
        self.streams = list(streams)
        return [self.samples[:n] for _ in prompts]


PARAMS = SamplingParams(max_new_tokens=12, temperature=1.0, seed=0)
POOL = GradingPool(n_workers=1)  # starts no process for plain numbers
PROBLEM = Problem("problems.jsonl:1", "sum/1", "3+4=", "7", "final_number")


def test_row_holds_the_sampled_tokens_their_span_and_the_reward_of_the_grader(tokenizer):
    engine = ScriptedEngine(tokenizer, ["#### 7<eos>", "#### 8<eos>", "7<eos>"], FinishReason.STOP)
    right, wrong, unparsed = collect_rows(engine, tokenizer, [PROBLEM], PARAMS, 3, pool=POOL)
    assert right.input_ids == tuple(tokenizer("3+4=#### 7<eos>").input_ids)
    assert right.action_spans == ((4, 11),)  # four tokens of prompt; "#### 7" is six, EOS the seventh action
    assert right.completion == "#### 7"  # EOS is an action, and no text
    assert right.behavior_logp == (-0.5,) * 7
    assert (right.task_id, right.prompt, right.finish_reason) == ("sum/1", "3+4=", FinishReason.STOP)
    assert [row.reward for row in (right, wrong, unparsed)] == [1.0, 0.0, 0.0]
    assert engine.streams == [stream_of("sum/1")]


def test_answers_that_take_computer_algebra_are_graded_too(tokenizer):
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install posttrain[math]")
    problem = replace(PROBLEM, answer="\\frac{7}{1}", grader="math_verify")
    engine = ScriptedEngine(tokenizer, ["7<eos>", "8<eos>"], FinishReason.STOP)
    with GradingPool(n_workers=1) as pool:
        rows = collect_rows(engine, tokenizer, [problem], PARAMS, 2, pool=pool)
    assert [row.reward for row in rows] == [1.0, 0.0]


def test_answer_cut_by_its_budget_gets_no_eos_and_is_still_graded(tokenizer):
    engine = ScriptedEngine(tokenizer, ["1+1", "#### 7"], FinishReason.LENGTH)
    cut, finished = collect_rows(engine, tokenizer, [PROBLEM], PARAMS, 2, pool=POOL)
    assert cut.finish_reason is FinishReason.LENGTH
    assert tokenizer.eos_token_id not in cut.input_ids
    assert (cut.reward, finished.reward) == (0.0, 1.0)


def test_rows_are_those_of_the_engine_and_read_back_as_trajectories(config, model, tokenizer):
    rows = read_rows(collect(config), parse_trajectory, on_bad_row=OnBadRow.ERROR).rows
    assert [row.task_id for row in rows] == [f"sum/{i}" for i in range(10) for _ in range(4)]
    engine = TransformersEngine(model, tokenizer, batch_size=3, device="cpu")
    prompts = [tokenizer(f"{i}+{i % 7}=").input_ids for i in range(10)]
    streams = [stream_of(f"sum/{i}") for i in range(10)]
    found = engine.sample(prompts, config.sampling_params(), 4, streams=streams)
    assert [row.input_ids for row in rows] == [
        (*prompt, *sample.token_ids) for prompt, samples in zip(prompts, found, strict=True) for sample in samples
    ]


def test_summary_counts_the_rows_of_the_file(config):
    rows = read_rows(collect(config), parse_trajectory, on_bad_row=OnBadRow.ERROR).rows
    summary = json.loads(config.output.with_suffix(".summary.json").read_text())
    assert summary["is_complete"] is True
    assert (summary["n_problems"], summary["n_rows"]) == (10, 40)
    assert summary["accuracy"] == sum(row.reward for row in rows) / 40
    assert summary["n_tokens"] == sum(len(row.behavior_logp) for row in rows)
    assert summary["n_cut_by_length"] == sum(row.finish_reason is FinishReason.LENGTH for row in rows)
    assert summary["n_correct"] + summary["n_wrong"] + summary["n_unparsed"] == 40
    assert summary["config"]["model"] == config.model


def test_summary_names_the_tokenizer_so_that_rows_of_another_chat_template_are_refused(config, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}={% endfor %}"
    tokenizer.save_pretrained(config.model)
    collect(replace(config, template="chat", limit=2))
    rows = read_rows(config.output, parse_trajectory, on_bad_row=OnBadRow.ERROR)
    limits = {"max_length": 64, "step_delimiters": (), "max_dropped_fraction": 0.0}
    assert prepare(rows, tokenizer, **limits).audit.n_kept == 8
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(RowsError, match="rendered by the chat template of"):
        prepare(rows, tokenizer, **limits)


def test_tally_tells_solved_and_mixed_problems_apart(tokenizer):
    tally = Tally()
    for texts in (["#### 7", "#### 7"], ["#### 7", "x"], ["#### 8", "x"]):
        engine = ScriptedEngine(tokenizer, texts, FinishReason.STOP)
        tally.add(PROBLEM, collect_rows(engine, tokenizer, [PROBLEM], PARAMS, 2, pool=POOL))
    assert (tally.n_problems, tally.n_solved, tally.n_mixed, tally.n_rows) == (3, 2, 1, 6)
    assert tally.progress() == "accuracy 50.0 %, unparsed 33.3 %"


def test_collection_stopped_at_any_byte_goes_on_to_the_bytes_of_an_unbroken_one(config):
    unbroken = collect(config).read_bytes()
    line_ends = [i + 1 for i, byte in enumerate(unbroken) if byte == 10]
    # Nothing yet; inside a row; between the rows of a problem, problems, chunks; all but a line break.
    for n_bytes in (0, 100, line_ends[1], line_ends[3], line_ends[11], line_ends[12] - 1, len(unbroken) - 1):
        config.output.write_bytes(unbroken[:n_bytes])
        collect(config)
        assert config.output.read_bytes() == unbroken


def test_finished_collection_is_left_as_it_is_without_loading_the_model(config, monkeypatch):
    unbroken = collect(config).read_bytes()
    monkeypatch.setattr("posttrain.rollout.collect.load_engine", None)
    assert collect(config).read_bytes() == unbroken


def test_higher_limit_adds_the_further_problems(config):
    unbroken = collect(config).read_bytes()
    config.output.unlink()
    collect(replace(config, limit=4))  # a chunk of 3 and a shorter one, which is sampled again in its whole chunk
    assert config.output.read_bytes().count(b"\n") == 16
    assert collect(config).read_bytes() == unbroken
    with pytest.raises(ValueError, match="rows beyond the 4 problems asked for"):
        collect(replace(config, limit=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"temperature": 0.5}, "temperature was 1.0, is 0.5"), ({"seed": 6}, "seed was 5, is 6")],
)
def test_rows_of_another_run_are_not_mixed_in(config, change, message):
    collect(replace(config, limit=3))
    before = config.output.read_bytes()
    with pytest.raises(ValueError, match=message):
        collect(replace(config, **change))
    assert config.output.read_bytes() == before


def test_policy_trained_anew_in_the_same_folder_is_told_apart(config, model):
    collect(replace(config, limit=3))
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    model.save_pretrained(config.model)
    with pytest.raises(ValueError, match="model_sha256 was"):
        collect(config)


def test_changed_problems_and_rows_of_unknown_origin_are_refused(config, tmp_path):
    collect(replace(config, limit=3))
    text = Path(config.problems).read_text()
    Path(config.problems).write_text(text.replace('"1+1="', '"1-1="'))
    with pytest.raises(ValueError, match=r"rows.jsonl:5: is an answer to 'sum/1' with prompt '1\+1='"):
        collect(config)
    config.output.with_suffix(".summary.json").unlink()
    with pytest.raises(ValueError, match=r"rows.summary.json is not beside it"):
        collect(config)


def test_problems_that_share_an_id_are_refused(config):
    path = Path(config.problems)
    path.write_text(path.read_text() + path.read_text().splitlines()[2] + "\n")
    with pytest.raises(ValueError, match="task_id 'sum/2' is that of several problems"):
        collect(config)


def test_instruction_without_a_chat_template_is_refused(config):
    with pytest.raises(ValueError, match="only 'chat' has a system message"):
        collect(replace(config, instruction="Be brief."))


RUN_COLLECT = """
import json, sys
from pathlib import Path
from posttrain.rollout.collect import CollectConfig, collect
if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    collect(CollectConfig(**{**fields, "output": Path(fields["output"]), "stop": tuple(fields["stop"])}))
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_and_a_second_run_give_the_bytes_of_an_unbroken_one(config, tmp_path):
    config = replace(config, problems=str(write_problems(tmp_path / "many.jsonl", 45)), max_new_tokens=40)
    killed = replace(config, output=tmp_path / "killed.jsonl")
    fields = {name: value for name, value in asdict(killed).items()} | {"output": str(killed.output)}
    script = tmp_path / "run_collect.py"
    script.write_text(RUN_COLLECT)
    process = subprocess.Popen(
        [sys.executable, str(script), json.dumps(fields)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and (not killed.output.exists() or killed.output.stat().st_size == 0):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it had not come to its end
    n_lines = killed.output.read_bytes().count(b"\n")
    assert 0 < n_lines < 180
    assert json.loads(killed.output.with_suffix(".summary.json").read_text())["is_complete"] is False
    assert collect(killed).read_bytes() == collect(config).read_bytes()
