"""What the learners of the hypergrid study reach, how they account for it, and that a stopped run goes on."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from posttrain.control.gflownet.hypergrid import StopRule
from posttrain.control.gflownet.values import flow_paths
from posttrain.losses import trajectory_balance
from posttrain.studies.hypergrid.chain_learner import LateSamples
from posttrain.studies.hypergrid.config import HypergridConfig
from posttrain.studies.hypergrid.flow_learner import FlowLearner
from posttrain.studies.hypergrid.methods import FLOW_METHODS, METHODS
from posttrain.studies.hypergrid.ppo_learner import PpoLearner, generalised_advantage
from posttrain.studies.hypergrid.run import GridLearner, build_learner, run_hypergrid
from posttrain.studies.hypergrid.sample_log import SampleLog
from posttrain.training.loop import LoopConfig, run_loop
from tests.hypergrid_paths import as_trajectories, every_path, grid_of

SMALL = HypergridConfig(output_dir=Path("unused"), width=32, n_chains=4, n_sweep=10, ppo_batch_size=16, batch_size=8)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks of this size are slower on two threads than on one."""
    torch.set_num_threads(1)


def trained(method: str, n_updates: int, config: HypergridConfig) -> GridLearner:
    learner = build_learner(method, config.grid(), config, seed=0)
    for step in range(n_updates):
        learner.step(step)
    return learner


@pytest.mark.parametrize("method", ["fm", "tb", "subtb"])
def test_a_gflownet_samples_the_reward_after_600_updates(method: str):
    learner = trained(method, 600, HypergridConfig(output_dir=Path("unused")))
    result = learner.evaluate()
    assert result["tv"] < 0.02
    assert result["modes"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fm_all", "db", "vargrad", "tb_learned_pb", "tb_max_entropy_pb", "tb_replay"])
def test_every_other_balance_comes_close_on_a_small_net(method: str):
    # The policy that takes all actions alike has a TV of 0.70 here; the width is a quarter of the paper's.
    assert trained(method, 500, HypergridConfig(output_dir=Path("unused"), width=64)).evaluate()["tv"] < 0.2


def test_ppo_finds_the_modes_and_does_not_sample_the_reward():
    # The negative control: it maximises the reward, so its distribution is another one.
    result = trained("ppo", 60, HypergridConfig(output_dir=Path("unused"), width=64)).evaluate()
    assert result["tv"] > 0.3
    assert result["modes"] == 4


def test_chains_sample_the_reward_with_the_hastings_ratio_and_something_else_without():
    # Without it the chain rests at R(x) · (neighbours of x), a TV of 0.157 away; the counts' noise is about 0.01.
    config = HypergridConfig(output_dir=Path("unused"), n_chains=64)
    grid = config.grid()
    n_neighbours = ((grid.graph.child >= 0).sum(-1) + (grid.graph.parent >= 0).sum(-1)).double()
    biased = (grid.graph.log_reward + n_neighbours.log()).softmax(-1)
    distance = float((biased - grid.graph.log_target.exp()).abs().sum() / 2)
    assert trained("mcmc", 200, config).evaluate()["tv"] < 0.03
    assert abs(trained("mcmc_no_hastings", 200, config).evaluate()["tv"] - distance) < 0.03


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_ends_bit_for_bit_as_one_that_was_not(method: str, tmp_path: Path):
    config = replace(SMALL, methods=(method,))

    def run(folder: str, n_steps: int) -> Tensor:
        learner = build_learner(method, config.grid(), config, seed=0)
        run_loop(learner, LoopConfig(tmp_path / folder, n_steps, checkpoint_steps=3), settings={})
        return learner.distribution()

    whole = run("whole", 6)
    run("stopped", 3)
    assert torch.equal(run("stopped", 6), whole)


@pytest.mark.parametrize("method", ["fm", "tb", "subtb", "tb_learned_pb"])
def test_reading_the_states_of_a_batch_gives_the_gradient_of_reading_all(method: str):
    # Same weights, same random numbers: what the table and the network state by state say agree to float32.
    losses = []
    for reads_all in (True, False):
        learner = build_learner(method, SMALL.grid(), SMALL, seed=0)
        assert isinstance(learner, FlowLearner)
        learner.reads_all = reads_all
        loss = learner._loss_of_batch()
        loss.backward()
        weights = learner.model.network[0].weight
        losses.append((loss.detach(), weights.grad))
    (all_loss, all_gradient), (loss, gradient) = losses
    assert_close(loss, all_loss, rtol=1e-5, atol=0)
    assert_close(gradient, all_gradient, rtol=1e-4, atol=1e-5)


def test_soft_ppos_gain_is_the_negative_score_of_trajectory_balance():
    # Σ gain = log R + Σ log P_B − Σ log P_F, which trajectory balance compares with log Z: at log Z = 0 its residual
    # is −Σ gain, and the best a policy can earn is log Z.
    ppo = build_learner("soft_ppo", SMALL.grid(), SMALL, seed=0)
    assert isinstance(ppo, PpoLearner)
    flow = FlowLearner(SMALL.grid(), FLOW_METHODS["tb"], SMALL.flows(), seed=0)
    trajectories = as_trajectories(SMALL.grid(), every_path(2, 5, StopRule.FREE))
    paths = flow_paths(SMALL.grid().graph, trajectories, flow.model.tables(flow.model.states))
    gain = ppo._gain(trajectories, paths.log_pf)
    assert_close(gain.sum(-1).square(), trajectory_balance(paths)[0].value, rtol=1e-5, atol=1e-5)


def test_advantages_are_the_sums_of_a_loop_and_reach_their_two_ends():
    generator = torch.Generator().manual_seed(0)
    gain, value = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    is_step = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    for decay in (0.0, 0.7, 1.0):
        advantage = generalised_advantage(gain, value, is_step, decay)
        for b, t in itertools.product(range(3), range(4)):
            n_steps = int(is_step[b].sum())
            expected = 0.0
            for k in range(t, n_steps):
                after = float(value[b, k + 1]) if k + 1 < n_steps else 0.0
                expected += decay ** (k - t) * (float(gain[b, k]) + after - float(value[b, k]))
            assert_close(float(advantage[b, t]), expected, rtol=0, atol=1e-12)
    # λ = 1: what is still earned, less V.
    assert_close(float(advantage[0, 1]), float(gain[0, 1:].sum() - value[0, 1]), rtol=0, atol=1e-12)


def test_states_modes_and_the_legacy_l1_are_counted_by_hand():
    grid = grid_of(2, 8)
    log = SampleLog(grid)
    mode = int((grid.mode >= 0).nonzero()[0])
    log.add(torch.tensor([0, 0, mode, 0]), n_states=11)
    result = log.measure(grid.graph.log_target.exp())
    assert result["states"] == 11
    assert result["modes"] == 1
    assert result["tv"] == 0.0
    target = [float(r) / 21.8 for r in grid.graph.log_reward.exp()]
    share = [0.75 if x == 0 else 0.25 if x == mode else 0.0 for x in range(63)]
    expected = sum(abs(p - q) for p, q in zip(share, target, strict=True)) / 63
    assert_close(result["l1"], expected, rtol=1e-12, atol=0)


def test_late_samples_are_the_later_half_to_three_quarters():
    # Sweep k of ten steps stays in object k. The window moved before sweeps 2, 3, 5 and 9, when the run had doubled:
    # after sweep 8 it holds 3 to 8, after sweep 9 it holds 5 to 9.
    late = LateSamples(10)
    for sweep in range(1, 10):
        late.add(torch.full((10, 2), sweep))
        if sweep == 8:
            assert_close(late.distribution()[3:9], torch.full((6,), 1 / 6, dtype=torch.float64))
    assert_close(late.distribution()[5:], torch.full((5,), 1 / 5, dtype=torch.float64))


def test_exploration_and_replay_draw_what_the_policy_does_not():
    # A policy that always stops at once: with exploration some move, with replay half go where R was seen.
    for method, share_of_source in (("tb", 1.0), ("tb_explore", 1 - 0.05 * 2 / 3), ("tb_replay", 0.5)):
        learner = build_learner(method, SMALL.grid(), replace(SMALL, batch_size=4000), seed=0)
        assert isinstance(learner, FlowLearner)
        torch.nn.init.zeros_(learner.model.network[-1].weight)
        learner.model.network[-1].bias.data = torch.tensor([-40.0, -40.0, 40.0, 0.0])
        learner.log.add(torch.tensor([5]), n_states=1)
        end = learner._act(learner.model.tables(learner.model.states)).end
        assert abs(float((end == 0).double().mean()) - share_of_source) < 0.01
        if method == "tb_replay":
            assert int((end == 5).sum()) == 2000


def test_the_study_writes_curves_rows_and_arrays_and_does_only_what_is_missing(tmp_path: Path):
    config = replace(SMALL, output_dir=tmp_path, methods=("tb",), seeds=(0,), max_updates=20, eval_steps=10)
    run_hypergrid(config)
    run_hypergrid(replace(config, methods=("tb", "mcmc"), seeds=(0, 1)))
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(row["method"], row["seed"]) for row in rows] == [("tb", 0), ("tb", 1), ("mcmc", 0), ("mcmc", 1)]
    assert all(row["updates"] == 20 for row in rows)
    curve = [json.loads(line) for line in (tmp_path / "tb" / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve if "eval_tv" in row] == [10, 20]
    arrays = load_file(tmp_path / "tb" / "seed-0" / "arrays.safetensors")
    assert math.isnan(arrays["target"][7, 7])  # the far corner, which a forced episode never reaches
    assert_close(float(arrays["target"][1, 6]), 2.6 / 21.8, rtol=1e-12, atol=0)
    assert_close(float(arrays["learned"].nansum()), 1.0, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("tb", "sac")}, "methods sac: needed some of fm, fm_all"),
        ({"methods": ()}, r"methods \(none\)"),
        ({"reward_floor": 0.0}, "needed a positive number such as 1e-3"),
        ({"side": 4}, "side 4: no cell has"),
        ({"side": 1}, "side >= 2"),
        ({"seeds": (0, 0)}, "each once"),
        ({"seconds": 0.0}, "seconds is positive"),
        ({"flow_epsilon": -1.0}, "needs 0 or more"),
    ],
)
def test_settings_that_make_no_study_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)
