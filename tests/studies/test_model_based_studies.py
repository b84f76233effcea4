"""The studies of model-based generalisation: rows, curves, resumption, refused settings, the claim itself."""

from pathlib import Path

import pytest
import torch

from posttrain.evaluation.study_files import read_study
from posttrain.studies.model_based.config import PanFluteConfig, WorldName, WorldsOnlineConfig
from posttrain.studies.model_based.methods import Method
from posttrain.studies.model_based.offline import run_panflute
from posttrain.studies.model_based.online import OnlineFit, OnlineJob, online_fit, run_worlds_online


@pytest.mark.parametrize("world", ["panflute", "proc_maze"])
def test_online_learner_that_is_stopped_and_restored_ends_with_the_same_weights(world: str, tmp_path: Path) -> None:
    config = WorldsOnlineConfig(
        output_dir=tmp_path,
        world=WorldName(world),
        size=3,
        n_seeds=2,
        hidden=(8,),
        batch_size=20,
        n_steps=40,
        n_first_steps=10,
    )

    def learner() -> OnlineFit:
        return online_fit(OnlineJob(config, Method.LEARNED, 2))

    unbroken, stopped, restored = learner(), learner(), learner()
    for number in range(30):
        unbroken.step(number)
    for number in range(17):
        stopped.step(number)
    restored.load_state(stopped.state())
    for number in range(17, 30):
        restored.step(number)
    for ours, theirs in zip(unbroken.q.agent.network.parameters(), restored.q.agent.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert unbroken.evaluate() == restored.evaluate()


def test_study_writes_one_row_and_one_curve_per_seed_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def config(*methods: Method) -> PanFluteConfig:
        return PanFluteConfig(
            output_dir=tmp_path,
            n_transitions=(30,),
            n_pipes=3,
            methods=methods,
            n_seeds=2,
            hidden=(8,),
            batch_size=20,
            n_updates=6,
            eval_steps=3,
            n_processes=1,
        )

    run_panflute(config(Method.TABULAR, Method.REPLAY))
    run_panflute(config(Method.REPLAY, Method.LEARNED_REWARD))
    run = read_study(tmp_path)
    assert [(row["method"], row["seed"]) for row in run.rows] == [
        (method, seed) for method in ("tabular", "replay", "learned_reward") for seed in (0, 1)
    ]
    curve = run.curves["m-30/learned_reward"][1]["eval_reward_rate"]
    assert [step for step, _ in curve] == [3, 6]
    assert curve[-1][1] == run.rows[-1]["reward_rate"]


def test_online_study_has_a_row_for_each_replay_ratio(tmp_path: Path) -> None:
    config = WorldsOnlineConfig(
        output_dir=tmp_path,
        size=3,
        n_seeds=2,
        hidden=(8,),
        batch_size=20,
        n_steps=12,
        n_first_steps=5,
        eval_steps=6,
        methods=(Method.REPLAY,),
        replay_ratios=(1, 3),
        n_processes=1,
    )
    run_worlds_online(config)
    run = read_study(tmp_path)
    assert [(row["replay_ratio"], row["seed"]) for row in run.rows] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert set(run.curves) == {"ratio-1/replay", "ratio-3/replay"}


def test_number_of_updates_follows_the_replay_ratio(tmp_path: Path) -> None:
    config = WorldsOnlineConfig(
        output_dir=tmp_path, size=3, n_seeds=2, hidden=(8,), batch_size=20, n_steps=12, n_first_steps=5
    )
    learner = online_fit(OnlineJob(config, Method.REPLAY, 3))
    for number in range(12):
        learner.step(number)
    assert learner.q.agent.n_updates == 3 * (12 - 4)  # the fifth step is the first with five in memory


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 321}, "whole rollouts"),
        ({"n_seeds": 1}, "at least 2"),
        ({"n_transitions": ()}, "needed one size or more"),
    ],
)
def test_settings_that_cannot_be_compared_are_refused(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        PanFluteConfig(output_dir=tmp_path, **settings)


def test_online_study_refuses_a_table_and_updates_that_never_begin(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fixed data"):
        WorldsOnlineConfig(output_dir=tmp_path, methods=(Method.TABULAR,))
    with pytest.raises(ValueError, match="nothing is learned"):
        WorldsOnlineConfig(output_dir=tmp_path, n_steps=500)


@pytest.mark.slow
def test_learned_model_plays_panflute_from_data_on_which_replay_fails(tmp_path: Path) -> None:
    # 4,000 random transitions, half the updates of the recorded run; the optimum is 19 rewards in 100 steps.
    config = PanFluteConfig(
        output_dir=tmp_path,
        n_transitions=(4000,),
        methods=(Method.REPLAY, Method.LEARNED),
        n_seeds=2,
        n_updates=2500,
        n_processes=1,
    )
    run_panflute(config)
    run = read_study(tmp_path)
    assert min(run.numbers("reward_rate", method="learned")) >= 0.15
    assert max(run.numbers("reward_rate", method="replay")) <= 0.12
