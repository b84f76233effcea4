"""The hypergrid against the numbers of the paper's own code, and the checks of a graph."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from posttrain.control.gflownet.exact import log_n_paths, uniform_backward
from posttrain.control.gflownet.hypergrid import StopRule
from posttrain.control.gflownet.rollouts import sample_backward
from posttrain.control.gflownet.state_graph import state_graph
from tests.hypergrid_paths import every_path, grid_of, number_of

EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.mark.parametrize(
    ("n_dims", "reward_floor", "z"),
    # Measured with the paper's code: sum of its rewards over the objects that it can reach.
    [(2, 0.1, 21.8), (2, 0.01, 16.13), (2, 0.001, 15.563), (4, 0.1, 503.8), (4, 0.01, 164.23), (4, 0.001, 130.273)],
)
def test_z_of_the_forced_grid_is_that_of_the_papers_code(n_dims: int, reward_floor: float, z: float):
    grid = grid_of(n_dims, 8, reward_floor)
    assert grid.graph.n_states == {2: 63, 4: 3773}[n_dims]  # at most one coordinate is at the border
    assert grid.n_modes == 2**n_dims
    assert_close(float(grid.graph.log_reward.exp().sum()), z, rtol=1e-12, atol=0)


def test_the_free_grid_has_one_more_corner_and_its_reward():
    # 63 objects have Z = 21.8; the far corner (7, 7) lies on the plateau: 0.1 + 0.5 more.
    grid = grid_of(2, 8, 0.1, StopRule.FREE)
    assert grid.graph.n_states == 64
    assert_close(float(grid.graph.log_reward.exp().sum()), 22.4, **EXACT)


def test_reward_is_floor_plateau_and_band_where_the_coordinates_lie_so():
    # u = |2x/7 - 1|: x = 0 gives 1 (plateau), 1 gives 5/7 = 0.714 (band), 2 gives 3/7 (neither), 6 as 1, 7 as 0.
    grid = grid_of(2, 8, 0.1)
    reward = grid.graph.log_reward.exp()
    expected = {(0, 0): 0.6, (1, 1): 2.6, (1, 6): 2.6, (0, 1): 0.6, (1, 2): 0.1, (2, 0): 0.1, (7, 1): 0.6, (3, 7): 0.1}
    for cell, value in expected.items():
        assert_close(float(reward[number_of(grid)[cell]]), value, **EXACT)
    assert sorted(cell for cell, number in number_of(grid).items() if grid.mode[number] >= 0) == [
        (1, 1),
        (1, 6),
        (6, 1),
        (6, 6),
    ]


def test_a_cell_on_a_bound_of_the_band_is_outside_it():
    # H = 11: x = 1 gives u = 0.8 and x = 2 gives 0.6, both bounds of 0.6 < u < 0.8, so that no cell has the 2.
    assert grid_of(2, 11).n_modes == 0
    assert_close(float(grid_of(2, 11).graph.log_reward.exp().max()), 0.6, **EXACT)


@pytest.mark.parametrize("stop_rule", StopRule)
def test_every_parent_steps_to_its_child_and_every_child_knows_its_parent(stop_rule: StopRule):
    grid = grid_of(3, 4, 0.1, stop_rule)
    graph, number = grid.graph, number_of(grid)
    edges = set()
    for path in every_path(3, 4, stop_rule):
        edges |= {(number[s], number[t]) for s, t in itertools.pairwise(path)}
    by_child = {(s, int(c)) for s in range(graph.n_states) for c in graph.child[s] if c >= 0}
    by_parent = {(int(p), s) for s in range(graph.n_states) for p in graph.parent[s] if p >= 0}
    assert by_child == by_parent == edges


def test_levels_hold_the_cells_of_one_sum_of_coordinates():
    grid = grid_of(3, 5)
    for total, level in enumerate(grid.graph.levels):
        assert (grid.cell[level].sum(-1) == total).all()


@pytest.mark.parametrize("stop_rule", StopRule)
def test_number_of_paths_is_that_of_the_trajectories_written_out(stop_rule: StopRule):
    grid = grid_of(2, 4, 0.1, stop_rule)
    n_paths = dict.fromkeys(number_of(grid), 0)
    for path in every_path(2, 4, stop_rule):
        n_paths[path[-1]] += 1
    counted = torch.tensor([n_paths[cell] for cell in number_of(grid)], dtype=torch.float64)
    assert_close(log_n_paths(grid.graph).exp(), counted, rtol=1e-12, atol=0)


def test_free_paths_to_a_cell_are_multinomial():
    # To (3, 2, 1): 6! / (3! 2! 1!) = 60.
    grid = grid_of(3, 5, 0.1, StopRule.FREE)
    assert_close(float(log_n_paths(grid.graph)[number_of(grid)[(3, 2, 1)]]), math.log(60), rtol=1e-12, atol=0)


def test_random_parents_lead_from_every_state_to_the_source():
    graph = grid_of(3, 6).graph
    paths = sample_backward(
        graph, uniform_backward(graph), torch.arange(graph.n_states), torch.Generator().manual_seed(0)
    )
    assert (paths.state[:, 0] == 0).all()
    moves = paths.is_step[:, :-1] & paths.is_step[:, 1:]
    stepped = graph.child[paths.state[:, :-1], paths.action[:, :-1].clamp(max=2)]
    assert torch.equal(stepped[moves], paths.state[:, 1:][moves])
    assert torch.equal(paths.end, torch.arange(graph.n_states))


def test_states_are_sorted_so_that_parents_come_first():
    # 0 -> 2 -> 1, 0 -> 1: state 1 lies behind state 2, so it becomes the last one.
    graph, order = state_graph(torch.tensor([[2, 1], [-1, -1], [1, -1]]), torch.tensor([1.0, 2.0, 3.0]))
    assert order.tolist() == [0, 2, 1]
    assert graph.child.tolist() == [[1, 2], [2, -1], [-1, -1]]
    assert graph.parent.tolist() == [[-1, -1], [0, -1], [1, 0]]
    assert_close(graph.log_reward.exp(), torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64), **EXACT)


@pytest.mark.parametrize(
    ("child", "reward", "message"),
    [
        ([[1], [-1], [-1]], [1.0, 1.0, 1.0], "1 states have no parent, state 2 the first"),
        ([[1], [-1]], [1.0, 0.0], "reward of state 1 is 0.*add a floor"),
        ([[1], [-1]], [1.0, math.inf], "needed positive finite numbers"),
        ([[1], [0]], [1.0, 1.0], "state 0 has a parent"),
        ([[1, -1], [2, -1], [-1, 1]], [1.0, 1.0, 1.0], "has a cycle"),
        ([[1, 2], [-1, 3], [-1, 3], [-1, -1]], [1.0] * 4, "action 1 leads to state 3 from 2 states"),
        ([[1], [5]], [1.0, 1.0], "numbered 0 to 1"),
    ],
)
def test_a_graph_that_flows_cannot_live_on_is_refused(child: list[list[int]], reward: list[float], message: str):
    with pytest.raises(ValueError, match=message):
        state_graph(torch.tensor(child), torch.tensor(reward))


@pytest.mark.parametrize(
    ("n_dims", "side", "floor", "message"),
    [
        (2, 1, 0.1, "side >= 2"),
        (0, 8, 0.1, "n_dims >= 1"),
        (2, 8, 0.0, "needed a positive number such as 1e-3"),
        (2, 8, -1.0, "reward_floor is -1"),
        (8, 32, 0.1, "cannot be enumerated"),
    ],
)
def test_a_grid_without_moves_or_with_a_worthless_floor_is_refused(n_dims: int, side: int, floor: float, message: str):
    with pytest.raises(ValueError, match=message):
        grid_of(n_dims, side, floor)


def test_a_learner_needs_no_package_but_torch():
    # The benchmark runs it in torchgfn's environment, which has neither transformers nor safetensors.
    code = (
        "import sys, posttrain.studies.hypergrid.flow_learner; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'transformers', 'safetensors', 'datasets'}))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
