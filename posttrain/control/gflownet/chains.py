"""Metropolis-Hastings over the objects of a StateGraph; a proposal is a move along an edge, forward or backward.

Axes: N = 2 A neighbours of a state, its children by action and then its parents; C chains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.control.gflownet.rollouts import draw
from posttrain.control.gflownet.state_graph import NONE, StateGraph


def neighbours(graph: StateGraph) -> Tensor:
    """[S, N] int64, NONE where there is none."""
    return torch.cat((graph.child, graph.parent), dim=-1)


def uniform_proposal(graph: StateGraph) -> Tensor:
    """[S, N] log q(x'|x), every neighbour alike. At the border of a grid there are fewer, so q is not symmetric."""
    is_near = neighbours(graph) != NONE
    return torch.where(is_near, -is_near.sum(-1, keepdim=True).double().log(), -torch.inf)


def log_acceptance(graph: StateGraph, log_q: Tensor) -> Tensor:
    """[S, N] log min(1, R(x') q(x|x') / (R(x) q(x'|x))): the chain's stationary distribution is R/Z."""
    near = neighbours(graph)
    is_near = near != NONE
    backward = torch.arange(near.shape[1]).roll(graph.n_moves)  # the neighbour that leads back, of each
    log_hastings = torch.where(is_near, log_q[near, backward] - log_q, 0.0)
    return (_log_reward_ratio(graph, near) + log_hastings).clamp(max=0.0)


def log_acceptance_of_rewards(graph: StateGraph) -> Tensor:
    """[S, N] log min(1, R(x')/R(x)), the Hastings ratio left out, as in the paper's code.

    Under the uniform proposal the stationary distribution is then ∝ R(x) · (number of neighbours of x).
    """
    return _log_reward_ratio(graph, neighbours(graph)).clamp(max=0.0)


def transition_matrix(graph: StateGraph, log_q: Tensor, log_accept: Tensor) -> Tensor:
    """[S, S] float64 K(x, x'), for grids small enough to write it down."""
    near = neighbours(graph)
    flow = torch.where(near != NONE, (log_q + log_accept).double().exp(), 0.0)
    matrix = torch.zeros(graph.n_states, graph.n_states, dtype=torch.float64)
    matrix.scatter_add_(1, near.clamp(min=0), flow)
    return matrix + torch.diag(1 - flow.sum(-1))


def walk(
    graph: StateGraph, log_q: Tensor, log_accept: Tensor, state: Tensor, n_steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Chains from `state` [C]: states [n_steps + 1, C], that one first, and the neighbours proposed [n_steps, C]."""
    near, q = neighbours(graph), log_q.exp()
    proposed_by, log_threshold = torch.rand(2, n_steps, len(state), generator=generator)
    log_threshold = log_threshold.log()
    states, proposals = [state], []
    for step in range(n_steps):
        proposal = draw(q[state], proposed_by[step])
        is_accepted = log_threshold[step] < log_accept[state, proposal]
        state = torch.where(is_accepted, near[state, proposal], state)
        states.append(state)
        proposals.append(proposal)
    return torch.stack(states), torch.stack(proposals)


def _log_reward_ratio(graph: StateGraph, near: Tensor) -> Tensor:
    return torch.where(near != NONE, graph.log_reward[near] - graph.log_reward[:, None], 0.0)
