import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.control.continuous.environment import ActionKind, Environment, Step
from posttrain.studies.beer.agents import Ddpg
from posttrain.studies.beer.config import BeerConfig, split_method
from posttrain.studies.beer.learner import ControlLearner
from posttrain.studies.beer.networks import Actor, Critic
from posttrain.studies.beer.returns import cut, evaluate_episode, q_errors
from posttrain.studies.beer.run import Run, make_learner, run_beer
from posttrain.training.loop import LoopConfig, run_loop
from tests.studies.plain_agents import COMMON, flat, no_penalty

CONFIG = BeerConfig(
    output_dir=Path("unused"),
    discount=0.9,
    batch_size=8,
    replay_capacity=100,
    n_random_steps=4,
    n_eval_episodes=2,
    rank_samples=16,
)


def small_learner(training: Environment, config: BeerConfig = CONFIG) -> ControlLearner:
    return ControlLearner(Ddpg(1, 1, COMMON, no_penalty), training, Corridor(), config, seed=0)


class Corridor:
    """Position moves by the action; reward 1 a step; terminal beyond 3 where `ends`; limit of 5 steps."""

    action_kind = ActionKind.CONTINUOUS
    n_observations, n_actions, n_steps = 1, 1, 5

    def __init__(self, *, ends: bool = False) -> None:
        self.ends = ends

    def reset(self, seed: int) -> np.ndarray:
        self.x = seed % 7 / 7
        return np.array([self.x], np.float32)

    def step(self, action: np.ndarray) -> Step:
        self.x += float(action[0])
        return Step(np.array([self.x], np.float32), 1.0, self.ends and self.x > 3)


def test_time_limit_is_stored_as_no_end_with_the_observation_that_it_cut():
    learner = small_learner(Corridor())
    for step in range(11):
        learner.step(step)
    rows = learner.replay.rows(torch.arange(11))
    assert not rows["is_terminal"].any()
    moved = rows["next_observation"] - rows["observation"]
    torch.testing.assert_close(moved, rows["action"], rtol=0, atol=1e-6)  # also in steps 4 and 9, the fifth of each
    assert rows["observation"][5] != rows["next_observation"][4]


def test_terminal_steps_are_stored_as_ends():
    learner = small_learner(Corridor(ends=True))
    learner.episode.environment.x = 2.9
    learner._random_action = lambda: np.array([1.0], np.float32)
    learner.step(0)
    rows = learner.replay.rows(torch.arange(1))
    assert rows["is_terminal"].tolist() == [True]
    assert rows["next_observation"].item() == pytest.approx(3.9)


def test_updates_come_every_few_steps_once_steps_are_not_random():
    learner = small_learner(Corridor(), replace(CONFIG, update_every=3))
    logged = [bool(learner.step(step)) for step in range(10)]
    assert logged == [step in (6, 9) for step in range(10)]  # 0 and 3 are random
    assert learner.agent.n_updates == 2


def test_agent_sees_the_mapped_reward_and_the_return_is_the_tasks():
    config = replace(CONFIG, reward_scale=0.5, reward_shift=3.0)
    learner = small_learner(Corridor(), config)
    learner.step(0)
    assert learner.replay.rows(torch.arange(1))["reward"].tolist() == [2.0]  # 0.5 · (1 + 3)
    assert learner.evaluate()["return"] == 5.0  # five steps of reward 1


def test_evaluation_changes_nothing_that_is_trained_on():
    learner = small_learner(Corridor())
    for step in range(8):
        learner.step(step)
    before = flat(learner.state())
    first, second = learner.evaluate(), learner.evaluate()
    assert flat(learner.state()) == before
    assert first == second


def test_q_error_compares_with_sums_that_go_on_past_the_time_limit():
    # Reward 1 for ever: every state of the 5 within the limit has G = Σ γ^k over at least cut(γ) steps.
    actor, critic = Actor(1, 1, (4,)), Critic(2, (4,))
    with torch.no_grad():
        critic.head.weight.zero_()
        critic.head.bias.fill_(8.0)
        played = evaluate_episode(Corridor(), actor, seed=0, discount=0.9)
        errors = q_errors(critic, [played], reward_scale=1.0, reward_shift=0.0)
    horizon = cut(0.9)
    assert horizon == math.ceil(math.log(0.01) / math.log(0.9)) == 44
    assert len(played.discounted) == 5
    exact = [sum(0.9**k for k in range(5 + horizon - t)) for t in range(5)]
    assert errors["q_error"] == pytest.approx(np.mean([abs(8 - g) for g in exact]), abs=1e-6)
    assert errors["q_bias"] == pytest.approx(np.mean([8 - g for g in exact]), abs=1e-6)
    with torch.no_grad():  # 0.5 · (r + 3) = 2 a step: G doubles
        mapped = q_errors(critic, [played], reward_scale=0.5, reward_shift=3.0)
    assert mapped["q_bias"] == pytest.approx(np.mean([8 - 2 * g for g in exact]), abs=1e-6)


def test_q_error_is_exact_where_the_task_ends():
    class Ending(Corridor):
        def reset(self, seed: int) -> np.ndarray:
            self.left = 3
            return super().reset(seed)

        def step(self, action: np.ndarray) -> Step:
            self.left -= 1
            return Step(np.zeros(1, np.float32), 2.0, self.left == 0)

    with torch.no_grad():
        played = evaluate_episode(Ending(), Actor(1, 1, (4,)), seed=0, discount=0.9)
    assert played.total == 6.0
    assert played.discounted.tolist() == pytest.approx([2 + 0.9 * (2 + 0.9 * 2), 2 + 0.9 * 2, 2])


# Resume
def config_for(task: str, tmp_path: Path) -> BeerConfig:
    return BeerConfig(
        output_dir=tmp_path,
        task=task,
        n_steps=60,
        n_random_steps=20,
        hidden_sizes=(16, 16),
        batch_size=8,
        n_eval_episodes=1,
        replay_capacity=50,
        rank_samples=32,
    )


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("cartpole-swingup", "ddpg_released"),
        ("finger-spin", "td3_beer"),
        ("Pendulum-v1", "ddpg_dr3"),
        ("CartPole-v1", "dqn_infer"),
        ("LunarLander-v3", "dqn_released"),
    ],
)
def test_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, task: str, method: str):
    if "-v" not in task:
        pytest.importorskip("dm_control", reason="the control suite needs the extra `control`")
    if task == "LunarLander-v3":
        pytest.importorskip("Box2D", reason="Lunar Lander needs the extra `control`")
    run = Run(config_for(task, tmp_path), method, 3)
    whole = make_learner(run)
    expected = run_loop(whole, LoopConfig(tmp_path / "whole", 60), settings={})

    stopped = make_learner(run)
    run_loop(stopped, LoopConfig(tmp_path / "stopped", 47, checkpoint_steps=45), settings={})
    resumed = make_learner(run)
    found = run_loop(resumed, LoopConfig(tmp_path / "stopped", 60, checkpoint_steps=45), settings={})
    assert flat(resumed.agent.state()) == flat(whole.agent.state())
    assert resumed.generator.get_state().equal(whole.generator.get_state())
    assert {**found, "cpu_s": 0} == {**expected, "cpu_s": 0}


# Configs
def test_methods_are_an_algorithm_and_a_penalty():
    assert [split_method(method) for method in ("ddpg", "td3_beer", "ddpg_dr3", "dqn_infer")] == [
        ("ddpg", "none"),
        ("td3", "beer"),
        ("ddpg", "dr3"),
        ("dqn", "infer"),
    ]
    with pytest.raises(ValueError, match=r"method is 'sac_beer', needed ddpg, td3, dqn, alone or with _beer, _hinge"):
        BeerConfig(output_dir=Path("run"), methods=("sac_beer",))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("discount", 1.0, "discount is 1.0, needs 0 < discount < 1"),
        ("seeds", (0, 0), "no seed twice"),
        ("n_random_steps", 0, "n_random_steps is 0, needs 1 or more"),
        ("update_every", 0, "update_every is 0, needs 1 or more"),
        ("infer_heads", 0, "infer_heads is 0, needs 1 or more"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(field: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        BeerConfig(output_dir=Path("run"), **{field: value})


@pytest.mark.parametrize(
    ("task", "method", "message"),
    [
        (
            "CartPole-v1",
            "td3_beer",
            "method td3_beer is for continuous actions, and those of CartPole-v1 are discrete: give --methods dqn, or "
            "a --task such as Pendulum-v1",
        ),
        (
            "Pendulum-v1",
            "dqn",
            "method dqn is for discrete actions, and those of Pendulum-v1 are continuous: give --methods ddpg or td3, "
            "or a --task such as LunarLander-v3",
        ),
    ],
)
def test_method_for_another_kind_of_actions_is_refused_before_any_file(
    tmp_path: Path, task: str, method: str, message: str
):
    pytest.importorskip("gymnasium", reason="the tasks of gymnasium need it")
    config = replace(config_for(task, tmp_path / "run"), methods=(method,))
    with pytest.raises(ValueError, match=message):
        run_beer(config)
    assert not (tmp_path / "run").exists()
