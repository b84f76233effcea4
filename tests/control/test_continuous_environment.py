import sys

import numpy as np
import pytest
import torch

from posttrain.control.continuous.environment import ActionKind, Episode, Repeated, Step
from posttrain.control.continuous.gymnasium_task import GymnasiumTask
from posttrain.control.continuous.tasks import make_environment

gymnasium = pytest.importorskip("gymnasium", reason="the tasks of gymnasium need it")


def need_dm_control() -> None:
    pytest.importorskip("dm_control", reason="the control suite needs the extra `control`")


def need_box2d() -> None:
    pytest.importorskip("Box2D", reason="Lunar Lander needs the extra `control`")


class Countdown:
    """Terminal after `reset`'s seed modulo 5 plus 1 steps; the observation is what is left."""

    action_kind = ActionKind.CONTINUOUS
    n_observations, n_actions, n_steps = 1, 1, 100

    def reset(self, seed: int) -> np.ndarray:
        self.left = seed % 5 + 1
        return np.array([self.left], dtype=np.float32)

    def step(self, action: np.ndarray) -> Step:
        self.left -= 1
        return Step(np.array([self.left], dtype=np.float32), 1.0, self.left == 0)


def play(episode: Episode, n_steps: int, *, seed: int) -> list[tuple[list[float], float, bool]]:
    rng = np.random.default_rng(seed)
    played = []
    for _ in range(n_steps):
        action = rng.uniform(-1, 1, episode.environment.n_actions).astype(np.float32)
        outcome, is_over = episode.step(action)
        played.append((outcome.observation.tolist(), outcome.reward, is_over))
    return played


def test_episode_tells_the_end_of_a_task_from_its_time_limit():
    episode = Episode(Countdown(), seed=3, n_steps=2)
    ends = [episode.step(np.zeros(1, np.float32)) for _ in range(40)]
    over = [(outcome.is_terminal, outcome.observation[0]) for outcome, is_over in ends if is_over]
    assert (True, 0.0) in over  # the count reached 0 within two steps
    assert any(not is_terminal and left > 0 for is_terminal, left in over)  # stopped at the limit
    assert all((left == 0) == is_terminal for is_terminal, left in over)
    assert all(is_over for outcome, is_over in ends if outcome.is_terminal)


@pytest.mark.parametrize(
    "task", ["Pendulum-v1", "LunarLander-v3", "cartpole-swingup", "finger-spin", "humanoid-stand"]
)
def test_restored_episode_goes_on_bit_for_bit(task: str):
    if "-v" not in task:
        need_dm_control()
    if task == "LunarLander-v3":
        need_box2d()
    episode = Episode(make_environment(task), seed=7, n_steps=40)
    play(episode, 65, seed=0)  # 25 steps into the second episode
    state = episode.state()
    assert state["actions"].shape == (25, episode.environment.n_actions)
    expected = play(episode, 50, seed=1)
    other = Episode(make_environment(task), seed=7, n_steps=40)
    play(other, 3, seed=2)
    other.load_state(state)
    assert play(other, 50, seed=1) == expected


def test_episodes_begin_differently_and_the_same_seed_begins_the_same():
    first, second = (Episode(make_environment("Pendulum-v1"), seed=0, n_steps=1) for _ in range(2))
    begun = []
    for _ in range(3):
        assert np.array_equal(first.observation, second.observation)
        begun.append(tuple(first.observation))
        for episode in (first, second):
            episode.step(np.zeros(1, np.float32))
    assert len(set(begun)) == 3


def test_actions_are_scaled_to_the_bounds_of_the_task():
    # The torque of Pendulum is in [-2, 2] and costs 0.001 u²; from one state, u = 0 and u = ±2 differ by 0.004.
    environment = make_environment("Pendulum-v1")
    rewards = []
    for action in (-1.0, 0.0, 1.0):
        environment.reset(5)
        rewards.append(environment.step(np.array([action], np.float32)).reward)
    assert rewards[1] - rewards[0] == pytest.approx(0.004, abs=1e-9)
    assert rewards[1] - rewards[2] == pytest.approx(0.004, abs=1e-9)


def test_suite_task_goes_past_its_time_limit_and_never_says_that_it_ended():
    need_dm_control()
    environment = make_environment("cartpole-swingup")
    environment.reset(0)
    outcomes = [environment.step(np.array([0.3], np.float32)) for _ in range(1100)]
    assert not any(outcome.is_terminal for outcome in outcomes)
    assert all(0 <= outcome.reward <= 1 for outcome in outcomes)


def test_tasks_that_do_not_exist_are_refused_with_those_that_do():
    need_dm_control()
    with pytest.raises(ValueError, match=r"no cartpole-swing; it has .*cartpole-swingup"):
        make_environment("cartpole-swing")
    with pytest.raises(ValueError, match=r"needed domain-task of the control suite or a gymnasium id"):
        make_environment("pendulum")


def test_largest_entry_of_a_vector_is_the_choice_that_a_discrete_task_plays():
    environment, plain = make_environment("CartPole-v1"), gymnasium.make("CartPole-v1")
    assert (environment.action_kind, environment.n_actions, environment.n_steps) == ("discrete", 2, 500)
    expected, _ = plain.reset(seed=5)
    assert environment.reset(5).tolist() == expected.tolist()
    for vector, choice in (([1.0, 0.0], 0), ([-0.5, -0.4], 1), ([0.0, 1.0], 1), ([0.3, 0.2], 0)):
        expected, reward, is_terminal, _, _ = plain.step(choice)
        outcome = environment.step(np.array(vector, np.float32))
        assert (outcome.observation.tolist(), *outcome[1:]) == (expected.tolist(), reward, is_terminal)


def test_choices_of_a_discrete_task_may_begin_above_zero():
    class Recorder(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 1, (1,))
        action_space = gymnasium.spaces.Discrete(3, start=4)

        def step(self, action: int):
            return np.array([action], np.float32), 0.0, False, False, {}

    environment = GymnasiumTask(Recorder(), n_steps=10)
    played = [environment.step(row).observation.item() for row in np.eye(3, dtype=np.float32)]
    assert played == [4, 5, 6]


def test_other_kinds_of_actions_are_refused_with_the_fix():
    environment = gymnasium.make("CartPole-v1")
    environment.action_space = gymnasium.spaces.MultiDiscrete([2, 3])
    with pytest.raises(ValueError, match=r"MultiDiscrete\(\[2 3\]\), needed a Box or a Discrete.*TransformAction"):
        GymnasiumTask(environment, n_steps=10)


def test_infinite_action_bounds_are_refused_with_the_fix():
    environment = gymnasium.make("Pendulum-v1")
    environment.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(ValueError, match=r"between -inf and inf, needed finite bounds.*RescaleAction"):
        GymnasiumTask(environment, n_steps=10)


@pytest.mark.parametrize(("task", "package"), [("cartpole-swingup", "dm_control"), ("Pendulum-v1", "gymnasium")])
def test_missing_package_is_named_with_its_install_command(monkeypatch, task: str, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is needed for this task: pip install 'posttrain\[control\]'"):
        make_environment(task)


def test_missing_simulator_is_refused_with_the_install_command(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(
        ImportError, match=r"the simulator of LunarLander-v3 is needed .*: pip install 'posttrain\[control\]'; .*Box2D"
    ):
        make_environment("LunarLander-v3")


def test_replayed_state_holds_tensors_and_numbers_alone():
    state = Episode(Countdown(), seed=0, n_steps=5).state()
    assert state["n_begun"] == 1
    assert torch.equal(state["actions"], torch.zeros(0, 1))


def test_repeated_action_sums_its_rewards_and_stops_at_the_end_of_the_task():
    plain, repeated = Countdown(), Repeated(Countdown(), n_repeats=2)
    assert repeated.n_steps == 50  # of a limit of 100 plain steps
    seed = next(seed for seed in range(5) if seed % 5 == 2)  # terminal after three plain steps
    for environment in (plain, repeated):
        environment.reset(seed)
    nothing = np.zeros(1, np.float32)
    assert [repeated.step(nothing)[1:] for _ in range(2)] == [(2.0, False), (1.0, True)]
    with pytest.raises(ValueError, match=r"3 repeats of each action: needed a divisor of the time limit, 100 steps"):
        Repeated(Countdown(), n_repeats=3)
