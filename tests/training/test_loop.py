from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.control.replay import Replay
from posttrain.training.jobs import JobError, run_jobs
from posttrain.training.loop import LoopConfig, run_loop
from posttrain.training.metrics import read_metrics
from posttrain.training.state_files import load_state, save_state


class Regression:
    """A learner with all that a checkpoint has to hold: weights, Adam's moments, a generator, a replay."""

    def __init__(self, seed: int = 0, *, fails_at: int = -1) -> None:
        torch.manual_seed(seed)
        self.network = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)
        self.generator = torch.Generator().manual_seed(seed)
        self.replay = Replay(8)
        self.fails_at = fails_at

    def step(self, step: int) -> dict[str, Tensor]:
        if step == self.fails_at:
            raise KeyboardInterrupt
        x = torch.randn(3, 2, generator=self.generator)
        self.replay.add({"x": x, "y": x.sum(-1, keepdim=True)})
        drawn = self.replay.sample(4, self.generator)
        loss = (self.network(drawn["x"]) - drawn["y"]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss, "step_squared": torch.tensor(step**2)}

    def evaluate(self) -> dict[str, float]:
        return {"error": float((self.network.weight - 1).abs().max())}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "replay": self.replay.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.replay.load_state(state["replay"])


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


def test_run_cut_at_any_step_and_started_again_has_the_weights_and_the_log_of_one_that_was_not(tmp_path: Path) -> None:
    def config(name: str) -> LoopConfig:
        return LoopConfig(tmp_path / name, n_steps=30, logging_steps=1, eval_steps=10, checkpoint_steps=4)

    whole = Regression()
    wanted = run_loop(whole, config("whole"), settings={"lr": 0.1})
    for cut in (1, 8, 13, 29):
        name = f"cut-{cut}"
        with pytest.raises(KeyboardInterrupt):
            run_loop(Regression(fails_at=cut), config(name), settings={"lr": 0.1})
        again = Regression(seed=5)  # whatever it starts from is replaced
        if cut < 4:
            again = Regression()  # there was no checkpoint yet
        found = run_loop(again, config(name), settings={"lr": 0.1})
        assert torch.equal(again.network.weight, whole.network.weight)
        assert {**found, "cpu_s": 0} == {**wanted, "cpu_s": 0}
        assert losses(tmp_path / name) == losses(tmp_path / "whole")
    assert wanted["error"] < Regression().evaluate()["error"] / 2  # the steps that agree are steps of learning
    assert len(losses(tmp_path / "whole")) == 30


def test_log_has_means_since_the_last_row_and_the_evaluations(tmp_path: Path) -> None:
    run_loop(Regression(), LoopConfig(tmp_path, n_steps=5, logging_steps=2, eval_steps=2), settings={})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["step_squared"]) for row in rows if "step_squared" in row] == [
        (2, (0 + 1) / 2),
        (4, (4 + 9) / 2),
        (5, 16),
    ]
    assert [row["step"] for row in rows if "eval_error" in row] == [2, 4, 5]


def test_cpu_time_ends_a_run_after_the_step_that_reaches_it(tmp_path: Path) -> None:
    class Busy(Regression):
        def step(self, step: int) -> dict[str, Tensor]:
            sum(range(200_000))
            return super().step(step)

    config = LoopConfig(tmp_path, n_steps=1_000_000, max_cpu_s=0.05)
    ended = run_loop(Busy(), config, settings={})
    assert ended["cpu_s"] >= 0.05
    assert 1 <= ended["steps"] < 1000  # a step takes more than .5 ms
    *_, mean, last = read_metrics(tmp_path / "metrics.jsonl")
    assert mean["step"] == last["step"] == ended["steps"]


def test_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    config = LoopConfig(tmp_path, n_steps=4, checkpoint_steps=2)
    run_loop(Regression(), config, settings={"lr": 0.1, "seed": 0})
    with pytest.raises(ValueError, match=r"checkpoint-4 is of a run with another lr: give those settings"):
        run_loop(Regression(), config, settings={"lr": 0.2, "seed": 0})


@pytest.mark.parametrize("field", ["n_steps", "logging_steps", "eval_steps", "checkpoint_steps"])
def test_config_that_cannot_run_is_refused(field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{field} -1.*needed 1 or more of the first two, 0"):
        LoopConfig(**{"output_dir": tmp_path, "n_steps": 5, field: -1})


def test_state_of_nested_lists_numbers_and_shared_tensors_comes_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.tensor([1 / 3, float("nan"), float("inf")], dtype=torch.float64)
    state = {"a": [shared, {"b": shared[:1], 0: "text", 1: None}], "n": 1 / 3, "is_on": True, "pair": (1, 2)}
    save_state(tmp_path, state)
    found = load_state(tmp_path)
    assert torch.equal(found["a"][0].view(torch.int64), shared.view(torch.int64))
    assert torch.equal(found["a"][1].pop("b"), shared[:1])
    assert {**found, "a": found["a"][1:]} == {
        "a": [{0: "text", 1: None}],
        "n": 1 / 3,
        "is_on": True,
        "pair": [1, 2],
    }


def test_state_that_is_no_plain_data_is_refused_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.agents\.1\.network is a Linear: needed tensors, numbers"):
        save_state(tmp_path, {"agents": [{}, {"network": torch.nn.Linear(1, 1)}]})


def test_replay_keeps_the_newest_rows_and_goes_on_from_its_state() -> None:
    replay = Replay(5)
    for start in (0, 3, 6):
        replay.add({"n": torch.arange(start, start + 3), "x": torch.ones(3, 2) * start})
    assert (len(replay), sorted(replay.rows(torch.arange(5))["n"].tolist())) == (5, [4, 5, 6, 7, 8])
    again = Replay(5)
    again.load_state(replay.state())
    for each in (replay, again):
        each.add({"n": torch.tensor([9, 10]), "x": torch.zeros(2, 2)})
    drawn = [each.sample(100, torch.Generator().manual_seed(0)) for each in (replay, again)]
    assert torch.equal(drawn[0]["n"], drawn[1]["n"])
    assert set(drawn[0]["n"].tolist()) == {6, 7, 8, 9, 10}  # 100 draws of 5 rows miss one with chance 1e-9


def test_replay_draws_every_row_as_often() -> None:
    replay = Replay(4)
    replay.add({"n": torch.arange(3)})  # not yet full: only the rows that are there are drawn
    counts = replay.sample(30_000, torch.Generator().manual_seed(1))["n"].bincount(minlength=4)
    assert counts[3] == 0
    # binomial with p = 1/3: the standard deviation is 82
    assert all(abs(int(n) - 10_000) < 400 for n in counts[:3])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({}, "got no fields"),
        ({"x": torch.zeros(1, 3)}, r"got x \[3\] float32; the replay holds x \[2\] float32"),
        ({"x": torch.zeros(1, 2).double()}, "float64; the replay holds"),
        ({"x": torch.zeros(9, 2)}, "got 9 rows at once for a capacity of 8"),
    ],
)
def test_rows_that_the_replay_cannot_hold_are_refused(rows: Mapping[str, Tensor], said: str) -> None:
    replay = Replay(8)
    with pytest.raises(ValueError, match="the replay is empty"):
        replay.sample(1, torch.Generator())
    replay.add({"x": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match=said):
        replay.add(rows)


def square(number: int) -> int:
    if number < 0:
        raise ValueError("no negative numbers here")
    return number * number * torch.get_num_threads()


@pytest.mark.slow
def test_jobs_in_processes_give_the_results_of_one_process_in_their_order_with_one_thread_each() -> None:
    jobs = [5, 3, 4, 0]
    assert run_jobs(square, jobs, n_processes=1) == run_jobs(square, jobs, n_processes=2) == [25, 9, 16, 0]


@pytest.mark.slow
def test_job_that_fails_in_a_process_is_named_and_the_rest_is_not_begun() -> None:
    with pytest.raises(JobError, match="-2: no negative numbers here"):
        run_jobs(square, [1, -2, 3], n_processes=2)


def test_metrics_rows_hold_wall_time_and_cpu_seconds_that_rise(tmp_path: Path) -> None:
    run_loop(Regression(), LoopConfig(tmp_path, n_steps=6, logging_steps=2), settings={})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    cpu_s = [row["cpu_s"] for row in rows]
    assert cpu_s == sorted(cpu_s)
    assert cpu_s[0] > 0
    assert rows[0]["time"] > 1.6e9  # seconds since 1970
