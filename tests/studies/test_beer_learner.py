import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.control.continuous.environment import Step
from posttrain.losses.term import Term
from posttrain.studies.beer.agents import AgentConfig, Ddpg, Td3, Td3Config
from posttrain.studies.beer.config import BeerConfig, split_method
from posttrain.studies.beer.learner import ActingConfig, ControlLearner
from posttrain.studies.beer.networks import Actor, Critic
from posttrain.studies.beer.penalties import PenaltyName, make_penalty
from posttrain.studies.beer.returns import cut, evaluate_episode, q_errors
from posttrain.studies.beer.run import Run, make_learner
from posttrain.training.loop import LoopConfig, run_loop

COMMON = AgentConfig(hidden_sizes=(16, 16), learning_rate=1e-2, discount=0.9, tau=0.1)
ACTING = ActingConfig(
    seed=0,
    discount=0.9,
    batch_size=8,
    replay_capacity=100,
    n_random_steps=4,
    exploration=0.1,
    reward_scale=1.0,
    reward_shift=0.0,
    n_eval_episodes=2,
    rank_samples=16,
    rank_threshold=0.01,
    rank_delta=0.01,
)


def no_penalty(values, online) -> tuple[Term, ...]:
    return ()


def smoothed(noise: float = 0.0, actor_every: int = 1) -> Td3Config:
    return Td3Config(target_noise=noise, noise_clip=0.5, actor_every=actor_every)


class Corridor:
    """Position moves by the action; reward 1 a step; terminal beyond 3 where `ends`; limit of 5 steps."""

    n_observations, n_actions, n_steps = 1, 1, 5

    def __init__(self, *, ends: bool = False) -> None:
        self.ends = ends

    def reset(self, seed: int) -> np.ndarray:
        self.x = seed % 7 / 7
        return np.array([self.x], np.float32)

    def step(self, action: np.ndarray) -> Step:
        self.x += float(action[0])
        return Step(np.array([self.x], np.float32), 1.0, self.ends and self.x > 3)


def batch(n: int = 12, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "observation": torch.randn(n, 3, generator=generator),
        "action": torch.rand(n, 2, generator=generator) * 2 - 1,
        "reward": torch.randn(n, generator=generator),
        "next_observation": torch.randn(n, 3, generator=generator),
        "is_terminal": torch.arange(n) % 4 == 0,
    }


def flat(state: object) -> list[object]:
    """All leaves of a state, tensors as lists, in order."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *flat(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for entry in state for leaf in flat(entry)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]


# Updates
def test_ddpg_learns_from_the_slow_copies_and_stops_at_terminal_rows():
    torch.manual_seed(0)
    agent, rows = Ddpg(3, 2, COMMON, no_penalty), batch()
    actor, slow = agent.actor.slow, agent.critic.slow
    with torch.no_grad():
        errors = []
        for i in range(12):
            observation, action, following = (rows[k][i] for k in ("observation", "action", "next_observation"))
            q = slow.head(slow.hidden(torch.cat((observation, action))))  # before any update both copies are equal
            next_q = slow.head(slow.hidden(torch.cat((following, actor(following)))))
            errors.append(q - rows["reward"][i] - (0.0 if i % 4 == 0 else 0.9) * next_q)
    numbers = agent.update(rows, torch.Generator())
    torch.testing.assert_close(numbers["td"], torch.stack(errors).square().mean(), rtol=1e-5, atol=0)


def test_td3_learns_from_the_smaller_of_its_critics():
    torch.manual_seed(0)
    agent, rows = Td3(3, 2, COMMON, smoothed(), no_penalty), batch()
    with torch.no_grad():
        agent.second.slow.head.bias += 0.36  # so that either is the smaller somewhere
        action = agent.actor.slow(rows["next_observation"])
        pair = torch.cat((rows["next_observation"], action), -1)
        values = torch.cat([c.slow.head(c.slow.hidden(pair)) for c in (agent.critic, agent.second)], -1)
        assert 0 < int((values[:, 0] < values[:, 1]).sum()) < 12
        target = rows["reward"] + torch.where(rows["is_terminal"], 0.0, 0.9) * values.amin(-1)
        first = agent.critic.network
        q = first.head(first.hidden(torch.cat((rows["observation"], rows["action"]), -1))).squeeze(-1)
    numbers = agent.update(rows, torch.Generator().manual_seed(0))
    torch.testing.assert_close(numbers["td"], (q - target).square().mean(), rtol=1e-5, atol=0)


def test_td3_smooths_its_target_with_clipped_noise():
    torch.manual_seed(0)
    agent = Td3(3, 2, COMMON, smoothed(noise=0.0), no_penalty)
    state = agent.state()
    losses = []
    for noise in (0.0, 0.2, 100.0, 1e6):
        other = Td3(3, 2, COMMON, smoothed(noise=noise), no_penalty)
        other.load_state(state)
        losses.append(float(other.update(batch(), torch.Generator().manual_seed(0))["td"]))
    assert losses[0] != losses[1]
    assert losses[2] == losses[3]  # every draw is at the clip


@pytest.mark.parametrize(
    "make", [lambda: Ddpg(3, 2, COMMON, no_penalty), lambda: Td3(3, 2, COMMON, smoothed(), no_penalty)]
)
def test_actor_step_leaves_the_critic_without_gradient(make):
    agent, rows = make(), batch()
    agent.critic.optimizer.zero_grad()
    before = flat(agent.critic.network.state_dict())
    q = agent.critic.network.features(rows["observation"], agent.actor.network(rows["observation"])).sum()
    agent.actor.descend(q)
    assert all(parameter.grad is None for parameter in agent.critic.parameters)
    assert any(parameter.grad.abs().max() > 0 for parameter in agent.actor.parameters)
    assert flat(agent.critic.network.state_dict()) == before


def test_td3_moves_actor_and_slow_copies_only_every_few_updates():
    agent = Td3(3, 2, COMMON, smoothed(actor_every=3), no_penalty)
    moved = []
    for seed in range(6):
        before = [flat(part.state_dict()) for part in (agent.actor.network, agent.critic.slow, agent.second.slow)]
        agent.update(batch(seed=seed), torch.Generator().manual_seed(0))
        after = [flat(part.state_dict()) for part in (agent.actor.network, agent.critic.slow, agent.second.slow)]
        moved.append([a != b for a, b in zip(after, before, strict=True)])
    assert moved == [[False] * 3, [False] * 3, [True] * 3] * 2


def test_slow_copies_move_by_a_share_tau():
    agent = Ddpg(3, 2, COMMON, no_penalty)
    old = agent.critic.slow.head.bias.item()
    agent.update(batch(), torch.Generator())
    new = agent.critic.network.head.bias.item()
    assert agent.critic.slow.head.bias.item() == pytest.approx(old + 0.1 * (new - old), rel=1e-5)


@pytest.mark.parametrize("name", list(PenaltyName))
def test_penalty_of_coefficient_zero_changes_no_weight(name: PenaltyName):
    agents = []
    for penalty in (no_penalty, make_penalty(name, coef=0.0, discount=0.9)):
        torch.manual_seed(0)
        agents.append(Ddpg(3, 2, COMMON, penalty))
        for seed in range(3):
            agents[-1].update(batch(seed=seed), torch.Generator())
    assert flat(agents[0].state()) == flat(agents[1].state())


@pytest.mark.parametrize("name", [name for name in PenaltyName if name is not PenaltyName.NONE])
def test_each_penalty_changes_the_critic_in_its_own_way(name: PenaltyName):
    def weights(which: PenaltyName) -> list[object]:
        torch.manual_seed(0)
        agent = Ddpg(3, 2, COMMON, make_penalty(which, coef=1.0, discount=0.9))
        for seed in range(3):
            agent.update(batch(seed=seed), torch.Generator())
        return flat(agent.critic.network.state_dict())

    found = weights(name)
    assert [other for other in PenaltyName if weights(other) == found] == [name]


# Acting and measuring
def test_time_limit_is_stored_as_no_end_with_the_observation_that_it_cut():
    learner = ControlLearner(Ddpg(1, 1, COMMON, no_penalty), Corridor(), Corridor(), ACTING)
    for step in range(11):
        learner.step(step)
    rows = learner.replay.rows(torch.arange(11))
    assert not rows["is_terminal"].any()
    moved = rows["next_observation"] - rows["observation"]
    torch.testing.assert_close(moved, rows["action"], rtol=0, atol=1e-6)  # also in steps 4 and 9, the fifth of each
    assert rows["observation"][5] != rows["next_observation"][4]


def test_terminal_steps_are_stored_as_ends():
    learner = ControlLearner(Ddpg(1, 1, COMMON, no_penalty), Corridor(ends=True), Corridor(), ACTING)
    learner.episode.environment.x = 2.9
    learner._random_action = lambda: np.array([1.0], np.float32)
    learner.step(0)
    rows = learner.replay.rows(torch.arange(1))
    assert rows["is_terminal"].tolist() == [True]
    assert rows["next_observation"].item() == pytest.approx(3.9)


def test_agent_sees_the_mapped_reward_and_the_return_is_the_tasks():
    config = replace(ACTING, reward_scale=0.5, reward_shift=3.0)
    learner = ControlLearner(Ddpg(1, 1, COMMON, no_penalty), Corridor(), Corridor(), config)
    learner.step(0)
    assert learner.replay.rows(torch.arange(1))["reward"].tolist() == [2.0]  # 0.5 · (1 + 3)
    assert learner.evaluate()["return"] == 5.0  # five steps of reward 1


def test_evaluation_changes_nothing_that_is_trained_on():
    learner = ControlLearner(Ddpg(1, 1, COMMON, no_penalty), Corridor(), Corridor(), ACTING)
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
        output=tmp_path,
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
    [("cartpole-swingup", "ddpg_released"), ("finger-spin", "td3_beer"), ("Pendulum-v1", "ddpg_dr3")],
)
def test_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, task: str, method: str):
    if "-v" not in task:
        pytest.importorskip("dm_control", reason="the control suite needs the extra `control`")
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
    assert [split_method(method) for method in ("ddpg", "td3_beer", "ddpg_dr3")] == [
        ("ddpg", "none"),
        ("td3", "beer"),
        ("ddpg", "dr3"),
    ]
    with pytest.raises(ValueError, match=r"method is 'sac_beer', needed ddpg or td3, alone or with _beer, _hinge"):
        BeerConfig(output=Path("run"), methods=("sac_beer",))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("discount", 1.0, "discount is 1.0, needs 0 < discount < 1"),
        ("seeds", (0, 0), "no seed twice"),
        ("n_random_steps", 0, "n_random_steps is 0, needs 1 or more"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(field: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        BeerConfig(output=Path("run"), **{field: value})
