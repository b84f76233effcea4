import pytest
import torch

from posttrain.studies.beer.agents import Ddpg, Td3, Td3Config, climb
from posttrain.studies.beer.penalties import PenaltyName
from tests.studies.plain_agents import COMMON, flat, no_penalty, plain_penalty


def smoothed(noise: float = 0.0, actor_every: int = 1) -> Td3Config:
    return Td3Config(target_noise=noise, noise_clip=0.5, actor_every=actor_every)


def batch(n: int = 12, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "observation": torch.randn(n, 3, generator=generator),
        "action": torch.rand(n, 2, generator=generator) * 2 - 1,
        "reward": torch.randn(n, generator=generator),
        "next_observation": torch.randn(n, 3, generator=generator),
        "is_terminal": torch.arange(n) % 4 == 0,
    }


def test_ddpg_learns_from_the_slow_copies_and_stops_at_terminal_rows():
    torch.manual_seed(0)
    agent, rows = Ddpg(3, 2, COMMON, no_penalty), batch()
    actor, [slow] = agent.actor.slow, agent.critics.slow.each
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
        agent.critics.slow.each[1].head.bias += 0.36  # so that either is the smaller somewhere
        action = agent.actor.slow(rows["next_observation"])
        pair = torch.cat((rows["next_observation"], action), -1)
        values = torch.cat([slow.head(slow.hidden(pair)) for slow in agent.critics.slow.each], -1)
        assert 0 < int((values[:, 0] < values[:, 1]).sum()) < 12
        target = rows["reward"] + torch.where(rows["is_terminal"], 0.0, 0.9) * values.amin(-1)
        first = agent.critics.network.each[0]
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
    before = flat(agent.critics.network.state_dict())
    climb(agent.actor, agent.critics.network.each[0], rows["observation"])
    assert all(parameter.grad is None for parameter in agent.critics.parameters)
    assert any(parameter.grad.abs().max() > 0 for parameter in agent.actor.parameters)
    assert flat(agent.critics.network.state_dict()) == before


def test_td3_moves_actor_and_slow_copies_only_every_few_updates():
    agent = Td3(3, 2, COMMON, smoothed(actor_every=3), no_penalty)
    moved = []
    for seed in range(6):
        before = [flat(part.state_dict()) for part in (agent.actor.network, *agent.critics.slow.each)]
        agent.update(batch(seed=seed), torch.Generator().manual_seed(0))
        after = [flat(part.state_dict()) for part in (agent.actor.network, *agent.critics.slow.each)]
        moved.append([a != b for a, b in zip(after, before, strict=True)])
    assert moved == [[False] * 3, [False] * 3, [True] * 3] * 2


def test_slow_copies_move_by_a_share_tau():
    agent = Ddpg(3, 2, COMMON, no_penalty)
    old = agent.critics.slow.each[0].head.bias.item()
    agent.update(batch(), torch.Generator())
    new = agent.critics.network.each[0].head.bias.item()
    assert agent.critics.slow.each[0].head.bias.item() == pytest.approx(old + 0.1 * (new - old), rel=1e-5)


@pytest.mark.parametrize("name", list(PenaltyName))
def test_penalty_of_coefficient_zero_changes_no_weight(name: PenaltyName):
    agents = []
    for penalty in (no_penalty, plain_penalty(name, coef=0.0)):
        torch.manual_seed(0)
        agents.append(Ddpg(3, 2, COMMON, penalty))
        for seed in range(3):
            agents[-1].update(batch(seed=seed), torch.Generator())
    assert flat(agents[0].state()) == flat(agents[1].state())


@pytest.mark.parametrize("name", [name for name in PenaltyName if name is not PenaltyName.NONE])
def test_each_penalty_changes_the_critic_in_its_own_way(name: PenaltyName):
    def weights(which: PenaltyName) -> list[object]:
        torch.manual_seed(0)
        agent = Ddpg(3, 2, COMMON, plain_penalty(which, coef=1.0))
        for seed in range(3):
            agent.update(batch(seed=seed), torch.Generator())
        return flat(agent.critics.network.state_dict())

    found = weights(name)
    assert [other for other in PenaltyName if weights(other) == found] == [name]
