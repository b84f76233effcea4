"""Dynamic programming against trajectories written out, and the theory of flows in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.control.gflownet.exact import (
    log_n_paths,
    log_state_flows,
    max_entropy_backward,
    policy_of_flows,
    reach_probability,
    terminal_distribution,
    uniform_backward,
    uniform_forward,
)
from posttrain.control.gflownet.hypergrid import Hypergrid, StopRule
from posttrain.control.gflownet.rollouts import sample_backward, sample_forward
from posttrain.control.gflownet.values import StateTables, flow_paths
from posttrain.losses import FlowPaths, trajectory_balance, var_grad
from tests.hypergrid_paths import as_trajectories, every_path, grid_of, number_of, random_tables

FORCED = StopRule.FORCED
EXACT = {"rtol": 0, "atol": 1e-12}


def tv(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)


def random_backward(grid: Hypergrid, seed: int) -> Tensor:
    graph = grid.graph
    logits = torch.randn(graph.parent.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.where(graph.is_parent, logits, -torch.inf).log_softmax(-1)


def values_of_every_path(grid: Hypergrid, tables: StateTables) -> FlowPaths:
    trajectories = as_trajectories(grid, every_path(grid.n_dims, grid.side, FORCED))
    return flow_paths(grid.graph, trajectories, tables)


def test_terminal_distribution_sums_the_paths_written_out():
    grid = grid_of(2, 4)
    tables = random_tables(grid, 0).tables
    paths = values_of_every_path(grid, tables)
    probability = torch.where(paths.is_step, paths.log_pf, 0.0).sum(-1).exp().detach()
    expected = torch.zeros(grid.graph.n_states, dtype=torch.float64)
    for path, p in zip(every_path(2, 4, FORCED), probability, strict=True):
        expected[number_of(grid)[path[-1]]] += p
    exact = terminal_distribution(grid.graph, tables.log_edge.log_softmax(-1).detach())
    assert_close(exact, expected, **EXACT)
    assert_close(float(exact.sum()), 1.0, **EXACT)


@pytest.mark.parametrize("split", ["uniform", "max_entropy", "random"])
def test_flows_of_any_backward_policy_sample_the_reward_and_pass_z_through_the_source(split: str):
    grid = grid_of(2, 8)
    choices = {"uniform": uniform_backward, "max_entropy": max_entropy_backward}
    log_pb = choices[split](grid.graph) if split in choices else random_backward(grid, 3)
    log_flow = log_state_flows(grid.graph, log_pb)
    sampled = terminal_distribution(grid.graph, policy_of_flows(grid.graph, log_flow, log_pb))
    assert tv(sampled, grid.graph.log_target.exp()) < 1e-14
    assert_close(float(log_flow[0].exp()), 21.8, **EXACT)


def test_flows_are_not_unique_where_the_backward_policy_differs():
    grid = grid_of(2, 8)
    uniform = log_state_flows(grid.graph, uniform_backward(grid.graph)).exp()
    other = log_state_flows(grid.graph, random_backward(grid, 3)).exp()
    assert float((uniform - other).abs().max()) > 0.5


def test_reward_alone_counts_every_path_to_an_object():
    # Proposition 1: without log P_B the soft-optimal policy samples n(x) R(x). The numbers are those of n = 2, H = 8,
    # R0 = 0.1 with forced stops: Σ n R = 3970.8 and a distance of 0.7427 to R/Z.
    grid = grid_of(2, 8)
    none = torch.zeros_like(uniform_backward(grid.graph))
    log_value = log_state_flows(grid.graph, none)
    sampled = terminal_distribution(grid.graph, policy_of_flows(grid.graph, log_value, none))
    biased = (log_n_paths(grid.graph) + grid.graph.log_reward).softmax(-1)
    assert_close(sampled, biased, rtol=0, atol=1e-15)
    assert_close(float(log_value[0].exp()), 3970.8, rtol=1e-12, atol=0)
    assert_close(tv(sampled, grid.graph.log_target.exp()), 0.7427, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("temperature", "distance"), [(0.5, 0.257), (2.0, 0.488)])
def test_a_temperature_scales_the_reward_and_never_the_backward_policy(temperature: float, distance: float):
    # Soft values at temperature α are those at 1 of gains / α. Dividing log R alone gives R^(1/α); dividing log P_B
    # too gives another distribution. Distances measured on n = 2, H = 8, R0 = 0.1.
    grid = grid_of(2, 8)
    log_pb = uniform_backward(grid.graph)
    scaled = replace(grid.graph, log_reward=grid.graph.log_reward / temperature)

    def sampled(back: Tensor) -> Tensor:
        return terminal_distribution(scaled, policy_of_flows(scaled, log_state_flows(scaled, back), back))

    assert tv(sampled(log_pb), scaled.log_target.exp()) < 1e-14
    assert_close(tv(sampled(log_pb / temperature), scaled.log_target.exp()), distance, rtol=0, atol=5e-4)


def test_maximum_entropy_backward_makes_all_paths_to_an_object_equally_likely():
    grid = grid_of(2, 4)
    log_pb = max_entropy_backward(grid.graph)
    tables = replace(random_tables(grid, 0).tables, log_pb=torch.where(grid.graph.is_parent, log_pb, 0.0))
    along = values_of_every_path(grid, tables).log_pb.sum(-1)
    trajectories = as_trajectories(grid, every_path(2, 4, FORCED))
    assert_close(along, -log_n_paths(grid.graph)[trajectories.end], **EXACT)


def test_half_the_expected_gradient_of_trajectory_balance_is_that_of_the_divergence():
    # ½ E_{τ ~ P_F} ∇ L_TB = ∇ KL(P_F ‖ P_B R/Z) whatever log Z is, over the 11 trajectories of n = 2, H = 3.
    grid = grid_of(2, 3)
    random = random_tables(grid, 1)
    paths = values_of_every_path(grid, random.tables)
    assert len(paths.log_reward) == 11
    logp = torch.where(paths.is_step, paths.log_pf, 0.0).sum(-1)
    (term,) = trajectory_balance(paths)
    (by_balance,) = torch.autograd.grad((logp.exp().detach() * term.value).sum() / 2, random.logits, retain_graph=True)
    log_target = paths.log_reward + paths.log_pb.sum(-1)
    (by_divergence,) = torch.autograd.grad((logp.exp() * (logp - log_target)).sum(), random.logits)
    assert_close(by_balance, by_divergence, **EXACT)


def test_var_grad_moves_the_policy_as_trajectory_balance_at_the_batchs_own_log_z():
    grid = grid_of(2, 3)
    random = random_tables(grid, 2)
    paths = values_of_every_path(grid, random.tables)
    (by_variance,) = torch.autograd.grad(var_grad(paths)[0].value.sum(), random.logits, retain_graph=True)
    log_z = paths.gain().sum(-1).mean().detach()
    at_mean = replace(paths, log_flow=log_z.expand_as(paths.log_flow))
    (by_balance,) = torch.autograd.grad(trajectory_balance(at_mean)[0].value.sum(), random.logits)
    assert_close(by_variance, by_balance, **EXACT)


def test_sampled_trajectories_have_the_frequencies_of_the_policy():
    # 40,000 draws over 15 objects: three standard deviations of the largest share are 3 sqrt(0.25/40000) = 0.0075.
    grid = grid_of(2, 4)
    log_pf = random_tables(grid, 5).tables.log_edge.log_softmax(-1).detach()
    drawn = sample_forward(grid.graph, log_pf.exp().__getitem__, 40_000, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn.end, minlength=grid.graph.n_states) / 40_000
    assert float((share - terminal_distribution(grid.graph, log_pf)).abs().max()) < 0.0075
    passed = torch.bincount(drawn.state[drawn.is_step], minlength=grid.graph.n_states) / 40_000
    assert float((passed - reach_probability(grid.graph, log_pf)).abs().max()) < 0.0075


def test_trajectories_sampled_backward_have_the_frequencies_of_the_backward_policy():
    # All paths to (2, 2) of n = 2, H = 4, six of them, drawn by a random P_B 40,000 times.
    grid = grid_of(2, 4)
    log_pb = random_backward(grid, 4)
    end = number_of(grid)[(2, 2)]
    paths = [path for path in every_path(2, 4, FORCED) if path[-1] == (2, 2)]
    written = as_trajectories(grid, paths)
    drawn = sample_backward(grid.graph, log_pb, torch.full((40_000,), end), torch.Generator().manual_seed(0))
    tables = replace(random_tables(grid, 0).tables, log_pb=torch.where(grid.graph.is_parent, log_pb, 0.0))
    expected = flow_paths(grid.graph, written, tables).log_pb.sum(-1).exp()
    assert_close(float(expected.sum()), 1.0, **EXACT)
    for states, p in zip(written.state, expected, strict=True):
        share = float((drawn.state == states).all(-1).double().mean())
        assert abs(share - float(p)) < 0.0075


def test_the_uniform_policy_takes_each_legal_action_alike():
    # (0, 0) of the forced grid: two moves and the stop; (3, 0) of H = 4: the stop alone.
    grid = grid_of(2, 4)
    p = uniform_forward(grid.graph).exp()
    assert_close(p[0], torch.full((3,), 1 / 3, dtype=torch.float64), **EXACT)
    assert p[number_of(grid)[(3, 0)]].tolist() == [0.0, 0.0, 1.0]
