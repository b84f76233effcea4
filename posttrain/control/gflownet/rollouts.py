"""Trajectories of a StateGraph, many at once: forward by a policy, or backward from given objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.control.gflownet.state_graph import StateGraph

Policy = Callable[[Tensor], Tensor]  # states [B] -> probabilities of the actions [B, A + 1], 0 where impossible


@dataclass(frozen=True, slots=True)
class Trajectories:
    """B trajectories from the source; the last step of each is the stop. Padding repeats the end and the stop."""

    state: Tensor  # [B, T] int64, before the step
    action: Tensor  # [B, T] int64
    is_step: Tensor  # [B, T] bool, True up to the stop, and including it

    @property
    def end(self) -> Tensor:
        """[B] the objects."""
        return self.state[:, -1]

    @property
    def n_visited(self) -> int:
        """States that these trajectories passed, the source and the ends among them."""
        return int(self.is_step.sum())


def draw(probability: Tensor, uniform: Tensor) -> Tensor:
    """[B] an index drawn from each row of probability [B, K], which need not sum to 1, by uniform [B] of [0, 1)."""
    cumulative = probability.cumsum(-1)
    # Scaled by the row's own sum, so that rounding never picks an impossible last index.
    return (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1).clamp(max=probability.shape[-1] - 1)


def sample_forward(graph: StateGraph, policy: Policy, n: int, generator: torch.Generator) -> Trajectories:
    """n trajectories by `policy`."""
    stop = graph.n_moves
    state = torch.zeros(n, dtype=torch.int64)
    is_live = torch.ones(n, dtype=torch.bool)
    states, actions, lives = [], [], []
    for uniform in torch.rand(len(graph.levels), n, generator=generator):
        action = torch.where(is_live, draw(policy(state), uniform), stop)
        states.append(state)
        actions.append(action)
        lives.append(is_live)
        is_live = action != stop
        if not is_live.any():
            break
        state = torch.where(is_live, graph.child[state, action.clamp(max=stop - 1)], state)
    return Trajectories(*(torch.stack(steps, dim=-1) for steps in (states, actions, lives)))


def sample_backward(graph: StateGraph, log_pb: Tensor, end: Tensor, generator: torch.Generator) -> Trajectories:
    """Trajectories to the objects `end` [B], their steps drawn from the end by P_B [S, A]."""
    n_moves_to = torch.zeros_like(end)
    state = end
    states, actions = [end], [torch.full_like(end, graph.n_moves)]  # from the end on
    p_backward = log_pb.double().exp()
    for uniform in torch.rand(len(graph.levels), len(end), generator=generator):
        is_live = state != 0
        if not is_live.any():
            break
        action = draw(p_backward[state], uniform)
        state = torch.where(is_live, graph.parent[state, action], state)
        states.append(state)
        actions.append(action)
        n_moves_to += is_live
    n_steps = torch.arange(len(states))
    from_end = (n_moves_to[:, None] - n_steps).clamp(min=0)
    state, action = (torch.stack(steps, dim=-1).gather(-1, from_end) for steps in (states, actions))
    return Trajectories(state, action, n_steps <= n_moves_to[:, None])


def joined(first: Trajectories, second: Trajectories) -> Trajectories:
    """All trajectories of both, with padding to the longest."""
    n_steps = max(first.state.shape[1], second.state.shape[1])
    fields = zip(_padded(first, n_steps), _padded(second, n_steps), strict=True)
    return Trajectories(*(torch.cat(both) for both in fields))


def _padded(trajectories: Trajectories, n_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    n_more = n_steps - trajectories.state.shape[1]
    state, action = (
        torch.cat((x, x[:, -1:].expand(-1, n_more)), dim=-1) for x in (trajectories.state, trajectories.action)
    )
    return state, action, torch.nn.functional.pad(trajectories.is_step, (0, n_more))
