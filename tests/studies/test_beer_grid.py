import json
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.control.continuous.grid import GridReward, grid_world
from posttrain.evaluation.study_files import read_study
from posttrain.studies.beer.grid_config import BeerGridConfig
from posttrain.studies.beer.grid_learner import GridLearner
from posttrain.studies.beer.grid_study import run_beer_grid
from posttrain.studies.beer.penalties import PenaltyName
from posttrain.training.loop import LoopConfig, run_loop
from tests.studies.plain_agents import plain_penalty

CONFIG = BeerGridConfig(output_dir=Path("unused"), learning_rate=3e-3, discount=0.9, tau=0.05)


def learner(name: PenaltyName, kind: GridReward = GridReward.COST, *, coef: float = 1e-3) -> GridLearner:
    return GridLearner(grid_world(kind, size=4), CONFIG, plain_penalty(name, coef=coef, width=64), seed=0)


@pytest.mark.parametrize("name", [PenaltyName.NONE, PenaltyName.BEER])
def test_critic_comes_to_the_optimal_values_and_no_row_is_above_the_bound_by_more_than_its_error(name: PenaltyName):
    trained = learner(name)
    before = trained.evaluate()
    for step in range(1200):
        trained.step(step)
    after = trained.evaluate()
    # Costs of at most 10 moves on a grid of 4 x 4: Q* is between −4.7 and −1.
    assert before["q_error"] > 2
    assert after["q_error"] < 0.1
    assert after["beer/firing_rate"] < before["beer/firing_rate"]


def test_error_and_residual_are_those_of_a_critic_that_holds_the_optimal_values():
    # With Q = b everywhere, Q − Q* is known, and next values are b: the residual is b − (r + γ (1 − end) b).
    trained = learner(PenaltyName.NONE)
    with torch.no_grad():
        for network in (trained.critic.network, trained.critic.slow):
            network.head.weight.zero_()
            network.head.bias.fill_(-2.0)
    world = trained.world
    optimal = world.optimal_q(discount=0.9)[world.is_start]
    measured = trained.evaluate()
    assert measured["q_error"] == pytest.approx(float((-2 - optimal).abs().mean()), abs=1e-6)
    target = -1 + torch.where(world.is_terminal, 0.0, 0.9 * -2.0)[world.is_start]
    assert measured["td_error"] == pytest.approx(float((-2 - target).abs().mean()), abs=1e-6)


def test_penalty_leaves_the_critic_alone_where_nothing_is_received():
    # Reward 1 at the goal alone, which ends the task: every row with a successor has reward 0. What is left of the
    # inflow is the bias's share, (1 − γ) b with b near 0, and no row is that close to its successor.
    plain, beer = learner(PenaltyName.NONE, GridReward.GOAL), learner(PenaltyName.BEER, GridReward.GOAL, coef=1.0)
    for step in range(100):
        plain.step(step)
        assert beer.step(step)["beer/firing_rate"] == 0
    assert all(map(torch.equal, plain.critic.parameters, beer.critic.parameters))


@pytest.mark.parametrize("name", [PenaltyName.RELEASED, PenaltyName.INFER])
def test_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, name: PenaltyName):
    whole, stopped, resumed = (learner(name) for _ in range(3))
    expected = run_loop(whole, LoopConfig(tmp_path / "whole", 30), settings={})
    run_loop(stopped, LoopConfig(tmp_path / "stopped", 25, checkpoint_steps=20), settings={})
    found = run_loop(resumed, LoopConfig(tmp_path / "stopped", 30, checkpoint_steps=20), settings={})
    assert {**found, "cpu_s": 0} == {**expected, "cpu_s": 0}
    assert all(map(torch.equal, whole.critic.parameters, resumed.critic.parameters))


def test_study_writes_a_result_and_a_curve_for_each_run_and_keeps_what_is_there(tmp_path: Path):
    config = BeerGridConfig(
        output_dir=tmp_path,
        rewards=(GridReward.GOAL,),
        penalties=(PenaltyName.NONE, PenaltyName.DR3),
        seeds=(0, 1),
        n_updates=20,
        logging_steps=10,
        eval_steps=10,
    )
    run_beer_grid(config)
    run = read_study(tmp_path)
    assert {(row["method"], row["reward"], row["seed"]) for row in run.rows} == {
        (method, "goal", seed) for method in ("dqn", "dqn_dr3") for seed in (0, 1)
    }
    assert sorted(run.curves) == ["goal/dqn", "goal/dqn_dr3"]
    assert [step for step, _ in run.curves["goal/dqn"][1]["eval_q_error"]] == [10, 20]
    written = (tmp_path / "results.jsonl").read_text()
    run_beer_grid(config)
    assert (tmp_path / "results.jsonl").read_text() == written
    assert np.isfinite([json.loads(line)["q_error"] for line in written.splitlines()]).all()


def test_settings_that_cannot_be_run_are_refused():
    with pytest.raises(ValueError, match=r"discount is 0\.0, needs 0 < discount < 1"):
        BeerGridConfig(output_dir=Path("run"), discount=0.0)
    with pytest.raises(ValueError, match=r"infer_heads is 0, needs 1 or more"):
        BeerGridConfig(output_dir=Path("run"), infer_heads=0)
    with pytest.raises(ValueError, match=r"seeds are \[1, 1\]: needed one or more, none of them twice"):
        BeerGridConfig(output_dir=Path("run"), seeds=(1, 1))
