"""What a network says of some states, gathered into the values that the GFlowNet objectives take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.control.gflownet.rollouts import Trajectories
from posttrain.control.gflownet.state_graph import StateGraph
from posttrain.losses.gflownet import FlowPaths, StateFlows


@dataclass(frozen=True, slots=True)
class StateTables:
    """Numbers of R states: all of the graph, or those that a batch needs."""

    log_edge: Tensor  # [R, A + 1] log F(s → s'), −inf where impossible; P_F is their softmax
    log_pb: Tensor  # [R, A], of the parents; finite also where there is none
    log_flow: Tensor  # [R] log F(s), a number of its own beside the edges; the source's is log Z
    row: Tensor  # [S] int64, the row of each state that has one


def flow_paths(graph: StateGraph, trajectories: Trajectories, tables: StateTables) -> FlowPaths:
    """The values of each step of `trajectories`."""
    rows, action = tables.row[trajectories.state], trajectories.action
    after = torch.cat((rows[:, 1:], rows[:, -1:]), dim=-1)
    is_move = action < graph.n_moves
    log_pb = _at(tables.log_pb, after, action.clamp(max=graph.n_moves - 1))
    return FlowPaths(
        log_pf=_at(tables.log_edge.log_softmax(-1), rows, action),
        log_pb=torch.where(is_move, log_pb, 0.0),
        log_reward=graph.log_reward[trajectories.end].to(log_pb.dtype),
        log_flow=tables.log_flow[rows],
        is_step=trajectories.is_step,
    )


def visited_after_source(trajectories: Trajectories) -> Tensor:
    """[N] every state that was moved to, as often as it was."""
    return trajectories.state[:, 1:][trajectories.is_step[:, 1:]]


def interior_flows(graph: StateGraph, state: Tensor, tables: StateTables) -> StateFlows:
    """Flows into and out of `state` [N], none of them the source; the stop's flow leaves a state like any other.

    The tables hold these states, all their parents, and the source.
    """
    parent = graph.parent[state]
    actions = torch.arange(graph.n_moves).expand_as(parent)
    inflow = _at(tables.log_edge, tables.row[parent.clamp(min=0)], actions)  # the source's row where there is none
    inflow = torch.where(parent >= 0, inflow, -torch.inf)
    return StateFlows(inflow.logsumexp(-1), tables.log_edge[tables.row[state]].logsumexp(-1))


def end_flows(graph: StateGraph, end: Tensor, tables: StateTables) -> StateFlows:
    """Of the states behind the stop, whose one parent is the object and whose outflow is R(x)."""
    return StateFlows(tables.log_edge[tables.row[end], -1], graph.log_reward[end].to(tables.log_edge.dtype))


def _at(table: Tensor, row: Tensor, column: Tensor) -> Tensor:
    # One flat index: its backward pass is an index_add, many times faster than that of two indexes.
    return table.flatten()[(row * table.shape[1] + column).flatten()].view_as(row)
