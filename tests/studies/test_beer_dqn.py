import copy

import pytest
import torch

from posttrain.losses.representation import FeatureValues, beer_cosine, beer_released
from posttrain.losses.term import total
from posttrain.studies.beer.agents import AgentConfig, Ddpg
from posttrain.studies.beer.dqn import Dqn, Greedy
from posttrain.studies.beer.exploration import EpsilonGreedy, Noise
from posttrain.studies.beer.networks import Critic
from posttrain.studies.beer.penalties import Passes, PenaltyName, make_penalty, random_heads
from tests.studies.plain_agents import COMMON, flat, no_penalty, plain_penalty

N_ACTIONS = 3


def batch(n: int = 12, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "observation": torch.randn(n, 2, generator=generator),
        "action": torch.eye(N_ACTIONS)[torch.randint(N_ACTIONS, (n,), generator=generator)],
        "reward": torch.randn(n, generator=generator),
        "next_observation": torch.randn(n, 2, generator=generator),
        "is_terminal": torch.arange(n) % 4 == 0,
    }


def dqn(penalty=no_penalty, *, seed: int = 0) -> Dqn:
    """With a slow copy that is another network than the trained one."""
    torch.manual_seed(seed)
    agent = Dqn(2, N_ACTIONS, COMMON, penalty)
    with torch.no_grad():
        for parameter in agent.critics.slow_parameters:
            parameter += 0.5 * torch.randn_like(parameter)
    return agent


def choices_of(critic: Critic, observation: torch.Tensor) -> list[torch.Tensor]:
    """Q of one observation at each action, one pass each."""
    return [critic.head(critic.hidden(torch.cat((observation, action)))).squeeze() for action in torch.eye(N_ACTIONS)]


# One update
def test_update_is_one_step_of_adam_down_the_mean_squared_difference_to_the_slow_copys_best_value():
    agent, rows = dqn(), batch()
    [slow], plain = agent.critics.slow.each, copy.deepcopy(agent.critics.network.each[0])
    slow_before = [parameter.clone() for parameter in agent.critics.slow_parameters]
    differences = []
    for i in range(12):
        target = rows["reward"][i]
        if i % 4:
            target = target + 0.9 * max(choices_of(slow, rows["next_observation"][i]))
        q = choices_of(plain, rows["observation"][i])[int(rows["action"][i].argmax())]
        differences.append((q - target.detach()) ** 2)
    loss = sum(differences) / 12
    loss.backward()
    numbers = agent.update(rows, torch.Generator())
    torch.testing.assert_close(numbers["td"], loss.detach(), rtol=1e-5, atol=0)
    for old, new, follower, before in zip(
        plain.parameters(), agent.critics.parameters, agent.critics.slow_parameters, slow_before, strict=True
    ):
        # Adam's first step: m / (√v + ε) with m = g, v = g² after its corrections, ε = 1e-8
        torch.testing.assert_close(new, old - 1e-2 * old.grad / (old.grad.abs() + 1e-8), rtol=0, atol=2e-6)
        torch.testing.assert_close(follower, before + 0.1 * (new - before), rtol=0, atol=1e-6)


def test_greedy_policy_takes_the_best_action_of_each_observation_and_the_first_of_equal_ones():
    torch.manual_seed(0)
    critic = Critic(2 + N_ACTIONS, (16,))
    observation = 3 * torch.randn(4, 5, 2)
    with torch.no_grad():
        best = [[int(torch.stack(choices_of(critic, x)).argmax()) for x in row] for row in observation]
    policy = Greedy(critic, N_ACTIONS)
    assert policy(observation).tolist() == torch.eye(N_ACTIONS)[torch.tensor(best)].tolist()
    assert policy(observation[0, 0]).tolist() == torch.eye(N_ACTIONS)[best[0][0]].tolist()
    assert len({choice for row in best for choice in row}) > 1
    critic.head.weight.data.zero_()
    assert policy(observation[0]).tolist() == [[1, 0, 0]] * 5


def test_critic_comes_to_the_values_of_value_iteration_on_a_chain():
    # Five cells, left and right; reward 1 for stepping right out of the last one, which ends it: Q* from the end is
    # 1, 0.9, 0.81 ..., and 0.9 times the best of the cell that is reached for a step left (0 stays where it is).
    moves = [(cell, action, max(cell - 1, 0) if action == 0 else cell + 1) for cell in range(5) for action in (0, 1)]
    best = [0.0] * 6
    for _ in range(200):
        q = [(next_ == 5) + 0.9 * best[next_] for _, _, next_ in moves]
        best = [max(q[2 * cell], q[2 * cell + 1]) for cell in range(5)] + [0.0]
    assert (q[9], q[1]) == (1.0, pytest.approx(0.9**4))
    places = torch.eye(6)[:, :5]  # nothing is seen of the end
    rows = {
        "observation": places[[cell for cell, _, _ in moves]],
        "action": torch.eye(2)[[action for _, action, _ in moves]],
        "reward": torch.tensor([float(next_ == 5) for _, _, next_ in moves]),
        "next_observation": places[[next_ for _, _, next_ in moves]],
        "is_terminal": torch.tensor([next_ == 5 for _, _, next_ in moves]),
    }
    torch.manual_seed(0)
    agent = Dqn(5, 2, AgentConfig(hidden_sizes=(32,), learning_rate=3e-3, discount=0.9, tau=0.1), no_penalty)
    for _ in range(1500):
        agent.update(rows, torch.Generator())
    critic = agent.critics.network.each[0]
    found = critic.value(critic.features(rows["observation"], rows["action"]))
    torch.testing.assert_close(found, torch.tensor(q), rtol=0, atol=0.01)
    assert agent.policy(places[:5]).argmax(-1).tolist() == [1] * 5


# Penalties
@pytest.mark.parametrize("name", [PenaltyName.BEER, PenaltyName.RELEASED])
def test_penalty_sees_the_pair_that_the_slow_copy_goes_on_with_and_the_released_one_the_trained_ones_too(name):
    agent, rows = dqn(plain_penalty(name, coef=1.0)), batch(64)
    rows["reward"] *= 10  # so that the bound is violated
    critic, slow = agent.critics.network.each[0], agent.critics.slow.each[0]
    with torch.no_grad():
        following = []
        for network in (slow, critic):
            best = [torch.stack(choices_of(network, x)).argmax() for x in rows["next_observation"]]
            pair = torch.cat((rows["next_observation"], torch.eye(N_ACTIONS)[best]), -1)
            following.append(network.hidden(pair))
        values = FeatureValues(
            critic.hidden(torch.cat((rows["observation"], rows["action"]), -1)),
            following[0],
            critic.head.weight[0],
            critic.head.bias[0],
            rows["reward"],
            torch.where(rows["is_terminal"], 0.0, 0.9),
        )
        terms = {
            PenaltyName.BEER: lambda: beer_cosine(values, coef=1.0, unit="segment"),
            PenaltyName.RELEASED: lambda: beer_released(
                values, online_next_phi=following[1], discount=0.9, coef=1.0, unit="segment"
            ),
        }[name]()
    numbers = agent.update(rows, torch.Generator())
    assert terms[0].value.sum() > 0
    for term in terms:
        torch.testing.assert_close(numbers[term.name], term.value.sum() / 48, rtol=1e-5, atol=1e-7)  # 16 of 64 end


def test_infer_is_zero_at_first_and_then_the_squared_change_of_its_heads():
    coef, rows = 0.5, batch()
    heads = random_heads(3, 16, seed=0)
    plain, held = dqn(), dqn(plain_penalty(PenaltyName.INFER, coef=coef))
    first = copy.deepcopy(held.critics.network.each[0])
    numbers = held.update(rows, torch.Generator())
    plain.update(rows, torch.Generator())
    assert numbers["infer"] == 0
    assert all(map(torch.equal, held.critics.parameters, plain.critics.parameters))  # nor has it a gradient there

    with torch.no_grad():
        pair = torch.cat((rows["observation"], rows["action"]), -1)
        change = held.critics.network.each[0].hidden(pair) - first.hidden(pair)  # [12, 16]
        squares = [[float(change[i] @ heads[:, k]) ** 2 for k in range(3)] for i in range(12)]
    numbers = held.update(rows, torch.Generator())
    plain.update(rows, torch.Generator())
    assert float(numbers["infer"]) == pytest.approx(sum(map(sum, squares)) / 36, rel=1e-4)
    assert not all(map(torch.equal, held.critics.parameters, plain.critics.parameters))


def test_gradient_of_infer_is_along_the_heads_that_changed():
    heads = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])  # D = 3, K = 2
    phi = torch.tensor([[1.0, 1.0, 9.0], [2.0, 0.0, 0.0]], requires_grad=True)
    first = torch.tensor([[1.0, 0.5, 0.0], [0.5, 0.0, 0.0]])
    nothing = torch.zeros(2)
    values = FeatureValues(phi, torch.zeros(2, 3), torch.zeros(3), torch.zeros(()), nothing, nothing)
    penalty = make_penalty(PenaltyName.INFER, coef=0.1, discount=0.9, heads=heads, scale=2.0)
    terms = penalty(values, Passes(lambda: pytest.fail("not asked for"), lambda: first))
    # ⟨φ, head⟩ − 2 ⟨φ⁰, head⟩: 1 − 2 and 2 − 2; 2 − 1 and 0 − 0. Terminal rows count like the others.
    assert terms[0].value.tolist() == [0.5, 0.5]
    total(terms, {"transition": 2.0}).backward()
    # 0.1 / 2 rows · 2 / 2 heads · Σ_k (change of k) head_k
    torch.testing.assert_close(phi.grad, torch.tensor([[-0.05, 0.0, 0.0], [0.05, 0.0, 0.0]]))


@pytest.mark.parametrize("make", [lambda penalty: dqn(penalty, seed=1), lambda penalty: Ddpg(2, 3, COMMON, penalty)])
def test_first_weights_stay_and_come_back_from_a_checkpoint(make):
    agent, other = (make(plain_penalty(PenaltyName.INFER, coef=1.0)) for _ in range(2))
    before = flat(agent.critics.network.state_dict())
    for seed in range(3):
        agent.update(batch(seed=seed), torch.Generator())
    assert flat(agent.critics.first.state_dict()) == before
    other.load_state(copy.deepcopy(agent.state()))
    for each in (agent, other):
        each.update(batch(seed=3), torch.Generator())
    assert flat(other.state()) == flat(agent.state())


def test_heads_are_those_of_their_seed_with_the_deviation_of_one_feature():
    heads = random_heads(1000, 64, seed=3)
    assert torch.equal(heads, random_heads(1000, 64, seed=3))
    assert not torch.equal(heads, random_heads(1000, 64, seed=4))
    # 64,000 draws of variance 1/64: the sum of a head's squares is 1, its mean over 1,000 heads within 0.006 (1 sd)
    assert float(heads.square().sum(0).mean()) == pytest.approx(1, abs=0.03)


# Exploration
@pytest.mark.parametrize(("epsilon", "expected"), [(0.0, (0, 1, 0, 0)), (0.4, (0.1, 0.7, 0.1, 0.1))])
def test_epsilon_greedy_plays_any_action_with_probability_epsilon(epsilon: float, expected: tuple[float, ...]):
    generator, n = torch.Generator().manual_seed(0), 5000
    greedy = torch.tensor([0.0, 1.0, 0.0, 0.0])
    played = torch.stack([EpsilonGreedy(epsilon).disturb(greedy, generator) for _ in range(n)])
    assert (played.sum(-1) == 1).all()
    # √(0.7 · 0.3 / 5000) = 0.0065: four deviations
    torch.testing.assert_close(played.mean(0), torch.tensor(expected).float(), rtol=0, atol=0.026)


def test_random_actions_are_one_hot_and_uniform_or_uniform_in_their_bounds():
    generator = torch.Generator().manual_seed(0)
    one_hot = torch.stack([EpsilonGreedy(0.1).random(4, generator) for _ in range(4000)])
    assert sorted(set(map(tuple, one_hot.tolist()))) == sorted(map(tuple, torch.eye(4).tolist()))
    torch.testing.assert_close(one_hot.mean(0), torch.full((4,), 0.25), rtol=0, atol=0.028)  # four deviations
    real = torch.stack([Noise(0.1).random(2, generator) for _ in range(2000)])
    assert -1 <= real.min() < -0.99
    assert 0.99 < real.max() <= 1
    torch.testing.assert_close(real.square().mean(0), torch.full((2,), 1 / 3), rtol=0, atol=0.03)


def test_noise_is_normal_around_the_action_and_cut_at_the_bounds():
    generator = torch.Generator().manual_seed(0)
    played = torch.stack([Noise(0.1).disturb(torch.tensor([0.2, 1.0]), generator) for _ in range(4000)])
    assert float(played[:, 0].mean()) == pytest.approx(0.2, abs=4 * 0.1 / 4000**0.5)
    assert float(played[:, 0].std()) == pytest.approx(0.1, abs=0.005)
    assert float((played[:, 1] == 1).float().mean()) == pytest.approx(0.5, abs=0.032)
