"""Imagination, stacks of seeds, Q-learning and tables."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.control.worlds.panflute import PanFlute
from posttrain.control.worlds.proc_maze import ProcMaze
from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import Memory, Transitions, random_walk
from posttrain.control.worlds.world import World, step
from posttrain.studies.model_based.deep_q import DeepQ, DeepQConfig
from posttrain.studies.model_based.latent import CategoricalLatentModel
from posttrain.studies.model_based.learners import ModelFit
from posttrain.studies.model_based.methods import Method, ModelNetworks, fresh_model, model_of, source_of
from posttrain.studies.model_based.models import Imagined, PerfectModel, SimpleModel, Spliced
from posttrain.studies.model_based.play import mean_return
from posttrain.studies.model_based.sources import Replayed, Rollouts, ValueBatch, reached
from posttrain.studies.model_based.stacked import StackedMLP, adam
from posttrain.studies.model_based.tabular import TabularQ

Q_CONFIG = DeepQConfig((16,), 1e-2, 0.9, 0.1, 3)


def maze_memory(seeds: list[int], n_steps: int = 200) -> Memory:
    return random_walk(ProcMaze(3), Streams(seeds), n_steps)


def always_right(state: Tensor) -> Tensor:
    return torch.full(state.shape[:2], 4)


@dataclass(frozen=True)
class Oracle:
    """A learned model's way of answering, logits and all, with the answers of the world."""

    world: World

    @property
    def n_state(self) -> int:
        return self.world.n_bits

    def encode(self, observation: Tensor, streams: Streams) -> Tensor:
        return observation

    def imagine(self, state: Tensor, action: Tensor, streams: Streams) -> Imagined:
        continue_logit = torch.where(self.world.is_terminal(state), -1e4, 1e4)
        return Imagined(self.world.reward(state), continue_logit.sigmoid(), self.world.move(state, action, streams))


def test_rollout_of_the_perfect_model_is_the_world_stepped_from_the_same_seed() -> None:
    world, memory = ProcMaze(3), maze_memory([0, 1])
    rollouts = Rollouts(memory, PerfectModel(world), 5, Streams([7, 8])).draw(20, always_right)
    streams = Streams([7, 8])
    now = memory.sample(streams, 4).observation
    for k in range(5):
        outcome = step(world, now, always_right(now), streams)
        part = slice(4 * k, 4 * k + 4)
        assert torch.equal(rollouts.state[:, part], now)
        assert torch.equal(rollouts.reward[:, part], outcome.reward)
        assert torch.equal(rollouts.next_state[:, part], outcome.next_observation)
        now = outcome.next_observation


def test_rollout_weighs_1_up_to_the_terminal_step_and_0_after_it() -> None:
    ends_third = [torch.tensor([[1.0]]), torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])]
    steps = [Imagined(torch.zeros(1, 1), goes_on, torch.zeros(1, 1, 2)) for goes_on in ends_third]
    assert torch.cat(reached(steps), 1).tolist() == [[1.0, 1.0, 1.0, 0.0]]
    uncertain = [Imagined(torch.zeros(1, 1), torch.tensor([[0.5]]), torch.zeros(1, 1, 2))] * 3
    assert torch.cat(reached(uncertain), 1).tolist() == [[1.0, 0.5, 0.25]]


def test_learned_form_with_the_truth_in_it_gives_the_q_loss_of_the_perfect_model() -> None:
    world, memory = ProcMaze(3), maze_memory([0, 1])
    losses = []
    for model in (PerfectModel(world), Oracle(world)):
        streams = Streams([5, 6])
        agent = DeepQ(Q_CONFIG, n_state=world.n_bits, n_actions=5, streams=streams)
        batch = Rollouts(memory, model, 10, streams).draw(80, agent.sample)
        assert float(batch.weight.min()) == 0  # some rollouts end
        losses.append(float(agent.update(batch)["loss/td"]))
    assert losses[0] == losses[1] > 0


def test_spliced_model_takes_dynamics_and_reward_each_from_its_own() -> None:
    world = PanFlute(3).without_chance()
    streams = Streams([0])
    learned = SimpleModel(world, streams, (8,))
    state, action = torch.ones(1, 2, world.n_bits), torch.tensor([[0, 1]])
    with_true_reward = Spliced(dynamics=learned, reward=PerfectModel(world)).imagine(state, action, streams)
    with_true_dynamics = Spliced(dynamics=PerfectModel(world), reward=learned).imagine(state, action, streams)
    assert torch.equal(with_true_reward.reward, torch.ones(1, 2))
    assert torch.equal(with_true_dynamics.next_state, world.move(state, action, streams))
    assert torch.equal(with_true_dynamics.reward, learned.imagine(state, action, streams).reward)


def test_simple_model_samples_bits_with_the_sigmoid_of_its_logits() -> None:
    world, streams = PanFlute(2), Streams([0])
    model = SimpleModel(world, streams, ())
    with torch.no_grad():
        model.bits.weights[0].zero_()
        model.bits.biases[0].copy_(torch.tensor([-2.0, 0.5, 2.0]))
    state, action = torch.zeros(1, 100_000, 3), torch.zeros(1, 100_000, dtype=torch.int64)
    mean = model.imagine(state, action, streams).next_state.mean((0, 1))
    assert_close(mean, torch.tensor([-2.0, 0.5, 2.0]).sigmoid(), rtol=0, atol=0.005)  # 3 deviations


def test_update_without_gradient_takes_one_millionth_of_each_weight_at_any_learning_rate() -> None:
    for learning_rate in (3e-6, 1e-4, 1e-2):
        weight = torch.nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64))
        weight.grad = torch.zeros_like(weight)
        adam([weight], learning_rate).step()
        expected = torch.tensor([1.0, -3.0], dtype=torch.float64) * (1 - 1e-6)
        assert_close(weight.detach(), expected, rtol=1e-15, atol=0)


def test_stacked_network_is_one_ordinary_network_per_seed() -> None:
    network = StackedMLP(Streams([0, 1]), (3, 5, 2)).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for seed in range(2):
        hidden = x[seed] @ network.weights[0][seed] + network.biases[0][seed]
        hidden = torch.where(hidden > 0, hidden, hidden.exp() - 1)
        assert_close(network(x)[seed], hidden @ network.weights[1][seed] + network.biases[1][seed])


def trained(seeds: list[int]) -> DeepQ:
    """After eight updates on imagined and replayed transitions of mazes."""
    world, memory, streams = ProcMaze(3), maze_memory([10 + seed for seed in seeds]), Streams(seeds)
    model = SimpleModel(world, streams, (16,))
    fit = ModelFit(model, memory, streams, batch_size=8, learning_rate=1e-2)
    agent = DeepQ(Q_CONFIG, n_state=world.n_bits, n_actions=5, streams=streams)
    for number in range(4):
        fit.step(number)
        agent.update(Rollouts(memory, model, 4, streams).draw(16, agent.sample))
        agent.update(Replayed(memory, streams).draw(16, agent.sample))
    return agent


def test_seed_learns_the_same_weights_alone_and_in_a_stack() -> None:
    stack, alone = trained([0, 1, 2]), trained([1])
    for of_stack, own in zip(stack.network.parameters(), alone.network.parameters(), strict=True):
        assert_close(of_stack[1], own[0], rtol=1e-4, atol=1e-6)  # float32, products of other shapes


def test_q_reaches_the_value_of_a_reward_for_ever() -> None:
    # One state, reward 1, γ = 0.9: Q = 10 for the action that is tried.
    agent = DeepQ(DeepQConfig((), 0.05, 0.9, 0.1, 5), n_state=1, n_actions=2, streams=Streams([0]))
    one = torch.ones(1, 4)
    batch = ValueBatch(one[..., None], torch.zeros(1, 4, dtype=torch.int64), one, one, one[..., None], one)
    for _ in range(1500):
        agent.update(batch)
    assert float(agent.network(one[:, :1, None]).detach()[0, 0, 0]) == pytest.approx(10, abs=0.05)


def test_batch_with_more_early_ends_has_the_same_loss_per_weight() -> None:
    # Weights are scaled to a mean of 1: rows that are left out do not shrink the step of the others.
    def loss(n_left_out: int) -> float:
        agent = DeepQ(Q_CONFIG, n_state=2, n_actions=2, streams=Streams([0]))
        n = 4 + n_left_out
        weight = torch.tensor([[1.0] * 4 + [0.0] * n_left_out])
        one = torch.ones(1, n)
        state = torch.ones(1, n, 2)
        return float(agent.update(ValueBatch(state, one.long(), one, one, state, weight))["loss/td"])

    assert loss(0) == pytest.approx(loss(12), rel=1e-6)


def test_table_solves_a_chain_and_draws_at_random_where_it_knows_nothing() -> None:
    # 0 -> 1 -> end with reward 1 at the end, γ = 0.5: Q(1) = 1, Q(0) = 0.5; the other action was never tried.
    bits = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    seen = Transitions(bits, torch.tensor([1, 0]), torch.tensor([0.0, 1.0]), torch.tensor([False, True]), bits[[1, 0]])
    table = TabularQ(seen, n_actions=2, discount=0.5)
    order = [int((table.states == row).all(-1).nonzero()) for row in bits]
    assert_close(table.q[order], torch.tensor([[0.0, 0.5], [1.0, 0.0]]))
    keys = torch.tensor([[0.9, 0.1]] * 3)
    unknown = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert table.greedy(unknown, keys).tolist() == [1, 0, 0]
    assert table.greedy(unknown, 1 - keys).tolist() == [1, 0, 1]


def test_table_averages_over_what_followed_one_pair() -> None:
    bits = torch.zeros(4, 1)
    rewards = torch.tensor([0.0, 1.0, 1.0, 1.0])
    seen = Transitions(bits, torch.zeros(4, dtype=torch.int64), rewards, torch.ones(4, dtype=torch.bool), bits)
    assert float(TabularQ(seen, n_actions=1, discount=0.9).q) == pytest.approx(0.75)


def test_return_stops_at_the_end_of_the_first_episode() -> None:
    # Whoever stands on the goal pays 1 for the step that ends the episode, and nothing after it.
    world = ProcMaze(3).without_chance()

    def stay(observation: Tensor) -> Tensor:
        return torch.zeros(observation.shape[:2], dtype=torch.int64)

    is_there = world.is_terminal(world.reset(Streams([0]), 500)).float().mean()
    earned = mean_return(world, stay, Streams([0]), n_copies=500, n_steps=7)
    assert float(earned) == pytest.approx(-float(is_there) - 7 * (1 - float(is_there)), rel=1e-6)


def test_latent_model_learns_to_predict_the_bits_that_an_action_sets() -> None:
    world = PanFlute(3).without_chance()
    memory, streams = random_walk(world, Streams([0]), 500), Streams([1])
    model = CategoricalLatentModel(world, streams, (32,), n_groups=4, n_classes=4)
    fit = ModelFit(model, memory, streams, batch_size=64, learning_rate=3e-3)
    first = {name: float(value) for name, value in fit.step(0).items()}
    for number in range(600):
        last = fit.step(number)
    assert float(last["loss/observation"]) < 0.1 * first["loss/observation"]
    rows = memory.sample(Streams([2]), 200)
    after = model.imagine(model.encode(rows.observation, streams), rows.action, streams).next_state
    decoded = (model.decoder(after) > 0).float()
    assert float((decoded == rows.next_observation).float().mean()) > 0.95


@pytest.mark.parametrize("method", [Method.REPLAY, Method.LEARNED, Method.PERFECT_ONE_STEP, Method.LATENT])
def test_method_feeds_q_with_as_many_transitions_as_every_other(method: Method) -> None:
    world, memory, streams = PanFlute(3), random_walk(PanFlute(3), Streams([0]), 50), Streams([1])
    learned = fresh_model(method, world, streams, ModelNetworks((8,), 3, 4))
    model = model_of(method, world, learned)
    source = source_of(method, memory, model, length=5, streams=streams)
    agent = DeepQ(Q_CONFIG, n_state=model.n_state, n_actions=3, streams=streams)
    batch = source.draw(20, agent.sample)
    assert batch.action.shape == (1, 20)
    n_starts = {Method.REPLAY: 20, Method.PERFECT_ONE_STEP: 20}.get(method, 4)
    is_first = torch.arange(20) < n_starts
    if method is not Method.LATENT:
        known = memory.all().observation[0]
        is_replayed = (batch.state[0, :, None] == known).all(-1).any(-1)
        assert bool(is_replayed[is_first].all())
