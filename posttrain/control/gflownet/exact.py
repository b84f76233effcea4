"""Dynamic programming over a StateGraph: what a policy samples, which flows a backward policy has, how many paths.

Tables are float64 log-probabilities: log_pf [S, A + 1] of actions, the stop last; log_pb [S, A] of parents, indexed by
the action that leads from them. Impossible entries are −inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.control.gflownet.state_graph import StateGraph


def reach_probability(graph: StateGraph, log_pf: Tensor) -> Tensor:
    """[S] μ(s), the chance that a trajectory passes s:  μ(s') = Σ over parents of μ(s) P_F(a|s), μ(source) = 1."""
    p_move = log_pf[:, :-1].double().exp()
    reached = torch.zeros(graph.n_states, dtype=torch.float64)
    reached[0] = 1.0
    actions = torch.arange(graph.n_moves)
    for level in graph.levels[1:]:
        parent = graph.parent[level]
        through = torch.where(parent >= 0, reached[parent] * p_move[parent, actions], 0.0)
        reached[level] = through.sum(-1)
    return reached


def terminal_distribution(graph: StateGraph, log_pf: Tensor) -> Tensor:
    """[S] P(x) = μ(x) P_F(stop|x): exactly what the policy samples."""
    return reach_probability(graph, log_pf) * log_pf[:, -1].double().exp()


def log_state_flows(graph: StateGraph, log_pb: Tensor) -> Tensor:
    """[S] log F(x) with F(x) = R(x) + Σ over children of F(c) P_B(x|c); that of the source is log Z.

    With log_pb of zeros it is the soft value of a reward log R alone, whose policy samples n(x) R(x): every one of the
    n(x) paths to x then counts.
    """
    log_flow = graph.log_reward.clone()
    actions = torch.arange(graph.n_moves)
    for level in reversed(graph.levels):
        child = graph.child[level]
        back = torch.where(child >= 0, log_flow[child] + log_pb[child, actions], -torch.inf)
        log_flow[level] = torch.cat((back, graph.log_reward[level, None]), dim=-1).logsumexp(-1)
    return log_flow


def policy_of_flows(graph: StateGraph, log_flow: Tensor, log_pb: Tensor) -> Tensor:
    """[S, A + 1] log P_F(c|s) = log F(c) + log P_B(s|c) − log F(s), and log R(x) − log F(x) for the stop."""
    actions = torch.arange(graph.n_moves)
    edge = torch.where(graph.child >= 0, log_flow[graph.child] + log_pb[graph.child, actions], -torch.inf)
    return torch.cat((edge, graph.log_reward[:, None]), dim=-1) - log_flow[:, None]


def log_n_paths(graph: StateGraph) -> Tensor:
    """[S] log n(s), how many paths lead from the source to s."""
    log_n = torch.zeros(graph.n_states, dtype=torch.float64)
    for level in graph.levels[1:]:
        parent = graph.parent[level]
        log_n[level] = torch.where(parent >= 0, log_n[parent], -torch.inf).logsumexp(-1)
    return log_n


def uniform_backward(graph: StateGraph) -> Tensor:
    """[S, A] log P_B = −log(number of parents)."""
    n_parents = graph.is_parent.sum(-1, keepdim=True).double()
    return torch.where(graph.is_parent, -n_parents.log(), -torch.inf)


def max_entropy_backward(graph: StateGraph) -> Tensor:
    """[S, A] log P_B(s|s') = log n(s) − log n(s'): all paths to an object are equally likely.

    Its trajectories have the highest entropy of all flows with the same rewards.
    """
    log_n = log_n_paths(graph)
    return torch.where(graph.is_parent, log_n[graph.parent] - log_n[:, None], -torch.inf)


def uniform_forward(graph: StateGraph) -> Tensor:
    """[S, A + 1] log of the policy that takes every legal action alike."""
    is_legal = graph.is_legal
    return torch.where(is_legal, -is_legal.sum(-1, keepdim=True).double().log(), -torch.inf)
