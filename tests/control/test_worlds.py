"""The worlds' rules, against counts by hand and searches written apart."""

from collections import deque

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.control.worlds.button_grid import OFF, ON, PLAYER, ButtonGrid
from posttrain.control.worlds.grid import DOWN, LEFT, RIGHT, STAY, UP
from posttrain.control.worlds.open_grid import OpenGrid
from posttrain.control.worlds.panflute import PanFlute
from posttrain.control.worlds.proc_maze import EMPTY, GOAL, ProcMaze
from posttrain.control.worlds.streams import Streams
from posttrain.control.worlds.transitions import Episodes, Memory, Transitions
from posttrain.control.worlds.world import World, step

STEPS = {UP: (-1, 0), LEFT: (0, -1), DOWN: (1, 0), RIGHT: (0, 1)}


def cell(observation: Tensor, n_channels: int, channel: int) -> int:
    """Where the only 1 of a channel of observations [n_bits] is."""
    places = observation.view(-1, n_channels)[:, channel].nonzero().flatten().tolist()
    assert len(places) == 1
    return places[0]


def actions(*chosen: int) -> Tensor:
    return torch.tensor([chosen])


def distance(is_open: list[bool], n: int, start: int, goal: int) -> int | None:
    """Moves of the shortest way over open cells, None where there is none."""
    queue, seen = deque([(start, 0)]), {start}
    while queue:
        at, d = queue.popleft()
        if at == goal:
            return d
        for down, right in STEPS.values():
            row, column = at // n + down, at % n + right
            if 0 <= row < n and 0 <= column < n and is_open[row * n + column] and row * n + column not in seen:
                seen.add(row * n + column)
                queue.append((row * n + column, d + 1))
    return None


@pytest.mark.parametrize(
    ("world", "n_bits"),
    [
        (ProcMaze(3), 36),
        (ProcMaze(4), 64),
        (ProcMaze(5), 100),
        (ButtonGrid(), 300),
        (PanFlute(5), 15),
        (PanFlute(7), 28),
        (OpenGrid(4), 32),
    ],
)
def test_observations_are_bits_of_the_published_sizes(world: World, n_bits: int) -> None:
    streams = Streams([0, 1])
    first = world.reset(streams, 3)
    after = step(world, first, streams.integers(world.n_actions, 3), streams).next_observation
    assert world.n_bits == n_bits
    for observation in (first, after):
        assert observation.shape == (2, 3, n_bits)
        assert set(observation.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("n_pipes", "earned"), [(5, 19), (4, 24), (7, 14)])
def test_blowing_the_pipes_in_a_circle_earns_one_reward_per_circle(n_pipes: int, earned: int) -> None:
    # From silence the first chord sounds after k steps; it is rewarded at steps k, 2k, ... below 100.
    world = PanFlute(n_pipes).without_chance()
    episodes = Episodes(world, Streams([0]), 1)
    rewards = [float(episodes.act(actions(n_pipes - 1 - t % n_pipes)).reward) for t in range(100)]
    assert sum(rewards) == earned
    assert rewards.index(1.0) == n_pipes


def test_chord_sounds_by_chance_once_in_n_pipes_squared_steps() -> None:
    world, streams = PanFlute(5), Streams([0])
    after = world.move(torch.zeros(1, 100_000, 15), torch.zeros(1, 100_000, dtype=torch.int64), streams)
    # Pipe 0 is blown, so it sounds anyway; all five sound only by the event. Deviation of the mean: 6.2e-4.
    assert float(world.reward(after).mean()) == pytest.approx(1 / 25, abs=2.5e-3)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_goal_of_a_maze_can_be_reached_and_there_are_no_loops(n: int) -> None:
    observations = ProcMaze(n).reset(Streams([0]), 300)[0]
    for observation in observations:
        is_open = (observation.view(-1, 4)[:, EMPTY] > 0).tolist()
        assert distance(is_open, n, cell(observation, 4, PLAYER), cell(observation, 4, GOAL)) is not None
        # A connected graph without loops has one edge less than it has cells.
        right = sum(is_open[i] and is_open[i + 1] for i in range(n * n) if i % n < n - 1)
        down = sum(is_open[i] and is_open[i + n] for i in range(n * n - n))
        assert right + down == sum(is_open) - 1


def test_mazes_are_as_many_and_as_long_as_published() -> None:
    # 18 mazes of side 3 in 2,000 draws; a side of 3 has (3 + 1) · 2 - 1 = 7 cells at most.
    observations = ProcMaze(3).reset(Streams([0]), 2000)[0]
    is_open = observations.view(2000, -1, 4)[..., EMPTY]
    assert len(is_open.unique(dim=0)) == 18
    assert int(is_open.sum(-1).max()) == 7
    is_at_goal = ProcMaze(3).is_terminal(observations[None])[0]
    assert float(is_at_goal.float().mean()) == pytest.approx(0.149, abs=0.025)  # 3 deviations


def test_return_of_the_shortest_way_is_minus_distance_and_one() -> None:
    n, streams = 4, Streams([0])
    world = ProcMaze(n).without_chance()
    for observation in world.reset(streams, 40)[0]:
        is_open = (observation.view(-1, 4)[:, EMPTY] > 0).tolist()
        goal = cell(observation, 4, GOAL)
        d = distance(is_open, n, cell(observation, 4, PLAYER), goal)
        now, earned, is_over = observation[None, None], 0.0, False
        while not is_over:
            outcome = step(world, now, actions(greedy_move(is_open, n, cell(now[0, 0], 4, PLAYER), goal)), streams)
            now, earned, is_over = outcome.next_observation, earned + float(outcome.reward), bool(outcome.is_terminal)
        assert d is not None
        assert earned == -(d + 1)


def greedy_move(is_open: list[bool], n: int, at: int, goal: int) -> int:
    if at == goal:
        return STAY
    reachable = {}
    for action, (down, right) in STEPS.items():
        row, column = at // n + down, at % n + right
        if 0 <= row < n and 0 <= column < n and is_open[row * n + column]:
            reachable[action] = distance(is_open, n, row * n + column, goal)
    return min(reachable, key=lambda action: reachable[action])


def test_walls_and_the_border_stop_a_move() -> None:
    world, streams = ProcMaze(3).without_chance(), Streams([0])
    observations = world.reset(streams, 50)
    for action, (down, right) in STEPS.items():
        after = world.move(observations, torch.full((1, 50), action), streams)[0]
        for before, now in zip(observations[0], after, strict=True):
            at = cell(before, 4, PLAYER)
            row, column = at // 3 + down, at % 3 + right
            is_free = 0 <= row < 3 and 0 <= column < 3 and before.view(-1, 4)[row * 3 + column, EMPTY] > 0
            assert cell(now, 4, PLAYER) == (row * 3 + column if is_free else at)


@pytest.mark.parametrize(("n", "p"), [(3, 0.1 / 7), (4, 0.01), (5, 0.1 / 17)])
def test_player_of_a_maze_is_put_on_the_goal_at_the_published_rate(n: int, p: float) -> None:
    world, streams = ProcMaze(n), Streams([0])
    assert world.p_chance == pytest.approx(p)
    maze = next(o for o in world.reset(streams, 100)[0] if not world.is_terminal(o))
    stay = torch.zeros(1, 60_000, dtype=torch.int64)
    after = world.move(maze.expand(1, 60_000, -1), stay, streams)
    assert float(world.is_terminal(after).float().mean()) == pytest.approx(p, abs=0.0015)  # 3 deviations


def button_state(n: int, player: int, on: tuple[int, ...], off: tuple[int, ...]) -> Tensor:
    bits = torch.zeros(n * n, 3)
    bits[player, PLAYER] = 1
    bits[list(on), ON] = 1
    bits[list(off), OFF] = 1
    return bits.flatten()[None, None]


def test_button_toggles_when_it_is_stepped_onto_and_not_when_it_is_stood_on() -> None:
    # Cells of a 3 x 3 grid:  0 1 2 / 3 4 5 / 6 7 8; the player stands on 0, buttons are at 1 (off) and 2 (on).
    world, streams = ButtonGrid(3, 2).without_chance(), Streams([0])
    start = button_state(3, 0, on=(2,), off=(1,))
    once = world.move(start, actions(RIGHT), streams)
    assert_close(once, button_state(3, 1, on=(1, 2), off=()))
    standing = button_state(3, 2, on=(2,), off=(1,))
    assert_close(world.move(standing, actions(STAY), streams), standing)
    assert_close(world.move(standing, actions(RIGHT), streams), standing)  # against the border
    assert_close(
        world.move(button_state(3, 5, on=(2,), off=(1,)), actions(UP), streams), button_state(3, 2, (), (1, 2))
    )


def test_buttons_that_are_all_on_pay_once_and_everything_is_drawn_anew() -> None:
    world, streams = ButtonGrid(3, 2).without_chance(), Streams([0])
    done = button_state(3, 0, on=(1, 2), off=()).expand(1, 200, -1)
    outcome = step(world, done, torch.zeros(1, 200, dtype=torch.int64), streams)
    assert_close(outcome.reward, torch.ones(1, 200))
    assert not bool(outcome.is_terminal.any())
    fresh = outcome.next_observation.view(200, 9, 3)
    assert_close(fresh.sum(1), torch.tensor([1.0, 0.0, 2.0]).expand(200, 3))  # one player, no button on, two off
    assert float(world.reward(button_state(3, 0, on=(1,), off=(2,)))) == 0


def test_buttons_switch_on_by_chance_at_the_published_rate() -> None:
    world, streams = ButtonGrid(3, 2), Streams([0])
    start = button_state(3, 0, on=(), off=(7, 8)).expand(1, 60_000, -1)
    after = world.move(start, torch.zeros(1, 60_000, dtype=torch.int64), streams)
    assert world.p_chance == pytest.approx(1 / 90)
    assert float(world.reward(after).mean()) == pytest.approx(1 / 90, abs=0.0013)  # 3 deviations


def test_open_grid_ends_on_its_corner_and_jumps_there_by_chance() -> None:
    world, streams = OpenGrid(4), Streams([0])
    quiet = world.without_chance()
    start = quiet.reset(streams, 1)
    now, n_moves = start, 6 - cell(start[0, 0], 2, PLAYER) // 4 - cell(start[0, 0], 2, PLAYER) % 4
    for action in [DOWN] * 3 + [RIGHT] * 3:
        now = quiet.move(now, actions(action), streams)
    assert bool(quiet.is_terminal(now)) and 0 <= n_moves <= 6
    far = next(o for o in quiet.reset(streams, 50)[0] if cell(o, 2, PLAYER) == 0)
    after = world.move(far.expand(1, 60_000, -1), torch.zeros(1, 60_000, dtype=torch.int64), streams)
    assert float(world.is_terminal(after).float().mean()) == pytest.approx(0.1 / 4, abs=0.002)  # 3 deviations


def test_no_stored_transition_crosses_an_episode() -> None:
    # A maze does not change within an episode. The reference code kept the old episode's last observation for the
    # first action of the next, so that one row per episode led from one maze into another.
    world, streams = ProcMaze(4), Streams([0, 1])
    episodes, memory = Episodes(world, streams, 3), Memory(2, 600, world.n_bits)
    for _ in range(200):
        memory.add(episodes.act(streams.integers(5, 3)))
    rows = memory.all()
    maze = rows.observation.view(2, 600, 16, 4)[..., GOAL:]
    assert torch.equal(maze, rows.next_observation.view(2, 600, 16, 4)[..., GOAL:])
    assert int(rows.is_terminal.sum()) > 20
    # The row after a terminal one (of the same copy, 3 rows on) begins with a maze of its own, mostly another.
    seed, place = rows.is_terminal[:, :-3].nonzero(as_tuple=True)
    is_same = (maze[seed, place] == maze[seed, place + 3]).flatten(1).all(-1)
    assert float(is_same.float().mean()) < 0.1


def test_seed_draws_the_same_alone_and_beside_others() -> None:
    world = ProcMaze(4)

    def walk(seeds: list[int]) -> Tensor:
        streams = Streams(seeds)
        episodes = Episodes(world, streams, 1)
        return torch.cat([episodes.act(streams.integers(5, 1)).next_observation for _ in range(100)], 1)

    # Over 100 steps the episodes of the two seeds end at different times.
    assert torch.equal(walk([3, 4])[1], walk([4])[0])


def test_memory_keeps_the_newest_rows_and_comes_back_from_its_state() -> None:
    memory = Memory(1, 3, 2)

    def row(number: int) -> Transitions:
        bits = torch.tensor([[[number % 2, 1.0]]])
        return Transitions(
            bits, torch.tensor([[number]]), torch.tensor([[float(number)]]), torch.tensor([[False]]), bits
        )

    for number in range(5):
        memory.add(row(number))
    assert memory.all().action.tolist() == [[2, 3, 4]]
    other = Memory(1, 3, 2)
    other.load_state(memory.state())
    assert torch.equal(other.sample(Streams([0]), 50).reward, memory.sample(Streams([0]), 50).reward)
    with pytest.raises(ValueError, match="memory is empty"):
        Memory(1, 3, 2).sample(Streams([0]), 1)


def test_bernoulli_draws_have_the_chance_of_the_sigmoid_and_not_of_the_logit() -> None:
    # The reference code drew with the logit for a probability: never below 0, always above 1.
    logit = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    p = logit.sigmoid()
    mean = Streams([0]).bernoulli(p.expand(1, 100_000, 5)).float().mean((0, 1))
    assert_close(mean, p, rtol=0, atol=0.005)  # 3 deviations


def test_categorical_draws_have_the_chances_of_the_softmax() -> None:
    logit = torch.tensor([0.0, 1.0, -1.0, 3.0])
    drawn = Streams([0]).categorical(logit.expand(1, 100_000, 4))
    shares = torch.bincount(drawn.flatten(), minlength=4) / 100_000
    assert_close(shares, logit.softmax(-1), rtol=0, atol=0.005)


def test_gymnasium_adapter_passes_the_checker_and_repeats_a_seed() -> None:
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    from gymnasium.utils.env_checker import check_env

    from posttrain.control.worlds.gymnasium_env import WorldEnv

    for world in (ProcMaze(3), PanFlute(5), ButtonGrid(4, 2), OpenGrid(4)):
        check_env(WorldEnv(world), skip_render_check=True)
    env = WorldEnv(ProcMaze(4))
    first, _ = env.reset(seed=7)
    env.step(1)
    again, _ = env.reset(seed=7)
    assert (first == again).all()
    is_over, n_steps = False, 0
    while not is_over:
        _, reward, is_over, _, _ = env.step(n_steps % 5)
        assert reward == -1.0
        n_steps += 1
    fresh, _ = env.reset()
    assert (fresh != first).any()
