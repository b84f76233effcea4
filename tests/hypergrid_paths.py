"""Every trajectory of a small hypergrid by recursion over coordinates, and policies over its states at random."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.control.gflownet.hypergrid import Hypergrid, StopRule, hypergrid
from posttrain.control.gflownet.rollouts import Trajectories
from posttrain.control.gflownet.values import StateTables

Cell = tuple[int, ...]


def grid_of(n_dims: int, side: int, reward_floor: float = 0.1, stop_rule: StopRule = StopRule.FORCED) -> Hypergrid:
    return hypergrid(n_dims=n_dims, side=side, reward_floor=reward_floor, stop_rule=stop_rule)


def every_path(n_dims: int, side: int, stop_rule: StopRule) -> list[tuple[Cell, ...]]:
    """The cells of each trajectory, from the source to the object."""

    def go_on(path: tuple[Cell, ...]) -> list[tuple[Cell, ...]]:
        here = path[-1]
        found = [path]  # stop here
        if stop_rule is StopRule.FORCED and side - 1 in here:
            return found
        for i in range(n_dims):
            if here[i] < side - 1:
                found += go_on((*path, (*here[:i], here[i] + 1, *here[i + 1 :])))
        return found

    return go_on(((0,) * n_dims,))


def number_of(grid: Hypergrid) -> dict[Cell, int]:
    return {tuple(cell): number for number, cell in enumerate(grid.cell.tolist())}


def as_trajectories(grid: Hypergrid, paths: list[tuple[Cell, ...]]) -> Trajectories:
    number = number_of(grid)
    n_steps = max(map(len, paths))
    state, action = (torch.zeros(len(paths), n_steps, dtype=torch.int64) for _ in range(2))
    is_step = torch.zeros(len(paths), n_steps, dtype=torch.bool)
    for b, path in enumerate(paths):
        moves = [next(i for i in range(grid.n_dims) if c[i] != d[i]) for c, d in itertools.pairwise(path)]
        n_padding = n_steps - len(path)
        state[b] = torch.tensor([number[cell] for cell in path] + [number[path[-1]]] * n_padding)
        action[b] = torch.tensor(moves + [grid.n_dims] * (1 + n_padding))
        is_step[b, : len(path)] = True
    return Trajectories(state, action, is_step)


@dataclass(frozen=True)
class RandomTables:
    """Free numbers of every state in float64, with gradient, and the tables made of them."""

    logits: Tensor
    log_flow: Tensor
    tables: StateTables


def random_tables(grid: Hypergrid, seed: int) -> RandomTables:
    graph = grid.graph
    generator = torch.Generator().manual_seed(seed)
    logits, back = (torch.randn(graph.is_legal.shape, dtype=torch.float64, generator=generator) for _ in range(2))
    log_flow = torch.randn(graph.n_states, dtype=torch.float64, generator=generator).requires_grad_()
    logits.requires_grad_()
    log_pb = torch.where(graph.is_parent, back[:, :-1], -torch.inf).log_softmax(-1)
    tables = StateTables(
        log_edge=torch.where(graph.is_legal, logits, -torch.inf),
        log_pb=torch.where(graph.is_parent, log_pb, 0.0),
        log_flow=log_flow,
        row=torch.arange(graph.n_states),
    )
    return RandomTables(logits, log_flow, tables)
