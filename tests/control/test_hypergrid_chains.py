"""Where Metropolis-Hastings rests, from its transition matrix in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.control.gflownet.chains import (
    log_acceptance,
    log_acceptance_of_rewards,
    neighbours,
    transition_matrix,
    uniform_proposal,
    walk,
)
from posttrain.control.gflownet.state_graph import StateGraph, state_graph
from tests.hypergrid_paths import grid_of

EXACT = {"rtol": 0, "atol": 1e-14}


def three_cells() -> StateGraph:
    """0 - 1 - 2 in a row with rewards 1, 2, 4: the middle has two neighbours, the ends have one."""
    return state_graph(torch.tensor([[1], [2], [-1]]), torch.tensor([1.0, 2.0, 4.0]))[0]


def stationary(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_power(matrix, 4096)[0]


def test_with_the_hastings_ratio_the_chain_rests_at_the_reward():
    graph = three_cells()
    log_q = uniform_proposal(graph)
    matrix = transition_matrix(graph, log_q, log_acceptance(graph, log_q))
    # From 0: propose 1 always, accept min(1, 2/1 · (1/2)/1) = 1. From 1: 0 or 2 by halves, accept 1/2 · 1/(1/2) = 1
    # and min(1, 2 · 2) = 1. From 2: propose 1, accept 2/4 · (1/2)/1 = 1/4.
    assert_close(matrix, torch.tensor([[0, 1, 0], [0.5, 0, 0.5], [0, 0.25, 0.75]], dtype=torch.float64), **EXACT)
    assert_close(stationary(matrix), torch.tensor([1, 2, 4], dtype=torch.float64) / 7, rtol=0, atol=1e-12)


def test_without_it_the_chain_rests_at_reward_times_the_number_of_neighbours():
    graph = three_cells()
    matrix = transition_matrix(graph, uniform_proposal(graph), log_acceptance_of_rewards(graph))
    # (1 · 1, 2 · 2, 4 · 1) / 9, which is not the reward.
    assert_close(stationary(matrix), torch.tensor([1, 4, 4], dtype=torch.float64) / 9, rtol=0, atol=1e-12)


def test_any_proposal_keeps_the_reward_when_the_whole_ratio_is_taken():
    grid = grid_of(2, 8)
    logits = torch.randn(63, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_q = torch.where(neighbours(grid.graph) >= 0, logits, -torch.inf).log_softmax(-1)
    target = grid.graph.log_target.exp()
    assert_close(target @ transition_matrix(grid.graph, log_q, log_acceptance(grid.graph, log_q)), target, **EXACT)
    biased = transition_matrix(grid.graph, log_q, log_acceptance_of_rewards(grid.graph))
    assert float((target @ biased - target).abs().max()) > 1e-2


def test_chains_walk_by_the_transition_matrix():
    # Where 20,000 chains are after 5 steps from the source, against the fifth power; three standard deviations: 0.011.
    grid = grid_of(2, 8)
    log_q = uniform_proposal(grid.graph)
    log_accept = log_acceptance(grid.graph, log_q)
    start = torch.zeros(20_000, dtype=torch.int64)
    states, proposals = walk(grid.graph, log_q, log_accept, start, 5, torch.Generator().manual_seed(0))
    assert torch.equal(states[0], start)
    expected = torch.linalg.matrix_power(transition_matrix(grid.graph, log_q, log_accept), 5)[0]
    share = torch.bincount(states[-1], minlength=63) / 20_000
    assert float((share - expected).abs().max()) < 0.011
    moved = states[1:] != states[:-1]
    assert torch.equal(neighbours(grid.graph)[states[:-1], proposals][moved], states[1:][moved])
