"""A finite DAG of states with one source, in which every state may be ended on and then is an object with a reward.

Axes: S states, A actions besides the stop. State 0 is the source. Action A, the last column of a policy, stops.
States are in topological order and in levels: all parents of a state stand in earlier levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NONE = -1


@dataclass(frozen=True, slots=True)
class StateGraph:
    """Build it with `state_graph`, which checks it."""

    child: Tensor  # [S, A] int64, the state that an action leads to, NONE where it is not possible
    parent: Tensor  # [S, A] int64, the state from which an action leads here, NONE where there is none
    levels: tuple[slice, ...]  # of states; the first one is the source alone
    log_reward: Tensor  # [S] float64, log R(x) > -inf

    @property
    def n_states(self) -> int:
        return self.child.shape[0]

    @property
    def n_moves(self) -> int:
        """A, which is also the stop's number."""
        return self.child.shape[1]

    @property
    def is_legal(self) -> Tensor:
        """[S, A + 1] bool, the stop among them."""
        return torch.nn.functional.pad(self.child != NONE, (0, 1), value=True)

    @property
    def is_parent(self) -> Tensor:
        """[S, A] bool."""
        return self.parent != NONE

    @property
    def log_target(self) -> Tensor:
        """[S] log R(x)/Z, the distribution that a GFlowNet learns."""
        return self.log_reward.log_softmax(-1)


def state_graph(child: Tensor, reward: Tensor) -> tuple[StateGraph, Tensor]:
    """The graph of a table of children [S, A] and of rewards [S], with its states sorted into levels.

    Returns the graph and the sorting: state i of the graph was row order[i]. Row 0 of `child` is the source.

    Raises ValueError for rewards that are not positive and finite, for states that the source does not lead to, for
    cycles, and where one action leads to the same state from two others, which the table of parents cannot hold.
    """
    _check_reward(child, reward)
    parent = _parents(child)
    depth = _depths(child, parent)
    order = depth.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    ends = torch.bincount(depth).cumsum(0).tolist()
    levels = tuple(slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))
    child, parent = (torch.where(table[order] == NONE, NONE, place[table[order]]) for table in (child, parent))
    return StateGraph(child, parent, levels, reward[order].double().log()), order


def _check_reward(child: Tensor, reward: Tensor) -> None:
    if reward.shape != child.shape[:1]:
        raise ValueError(f"got {tuple(reward.shape)} rewards for {child.shape[0]} states: needed one per state")
    is_bad = ~((reward > 0) & reward.isfinite())
    if is_bad.any():
        worst = int(is_bad.nonzero()[0])
        raise ValueError(
            f"the reward of state {worst} is {float(reward[worst]):g}, and {int(is_bad.sum())} states have such: "
            "flows are log rewards, so needed positive finite numbers; add a floor such as 1e-3 to all of them"
        )


def _parents(child: Tensor) -> Tensor:
    state, action = (child != NONE).nonzero(as_tuple=True)
    target = child[state, action]
    if len(target) and (int(target.min()) < 0 or int(target.max()) >= child.shape[0]):
        raise ValueError(f"children are numbered 0 to {child.shape[0] - 1}, {NONE} for none; got others")
    edge = target * child.shape[1] + action
    n_edges = torch.bincount(edge, minlength=child.numel())
    if (n_edges > 1).any():
        twice = int((n_edges > 1).nonzero()[0])
        raise ValueError(
            f"action {twice % child.shape[1]} leads to state {twice // child.shape[1]} from {int(n_edges.max())} "
            "states: needed one at most; number the actions by the edge"
        )
    parent = torch.full_like(child, NONE)
    parent[target, action] = state
    return parent


def _depths(child: Tensor, parent: Tensor) -> Tensor:
    """[S] edges on the longest path from the source, by sweeps that stop when nothing changes."""
    n_states = child.shape[0]
    if (parent[0] != NONE).any():
        raise ValueError("state 0 has a parent: it is the source, and needs none")
    is_orphan = (parent == NONE).all(-1)
    is_orphan[0] = False
    if is_orphan.any():
        raise ValueError(
            f"{int(is_orphan.sum())} states have no parent, state {int(is_orphan.nonzero()[0])} the first: the source "
            "does not lead to them, so no flow reaches their reward; drop them, or add the missing edges"
        )
    depth = torch.zeros(n_states, dtype=torch.int64)
    for _ in range(n_states):
        longer = torch.where(parent == NONE, -1, depth[parent]).amax(-1) + 1
        if torch.equal(longer, depth):
            return depth
        depth = longer
    raise ValueError("the depths of the states never settle: the graph has a cycle, and needed a DAG")
