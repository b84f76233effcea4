"""GFlowNet objectives on trajectories of molecules: the actions of a step that symmetries make one are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from posttrain.control.molecules.environment import EMPTY, MoleculeEnvironment
from posttrain.control.molecules.molecule import Molecule
from posttrain.losses.gflownet import FlowPaths, StateFlows, flow_matching, trajectory_balance
from posttrain.losses.term import total
from posttrain.studies.molecules.trajectories import Trajectory


class Flows(Protocol):
    """What is trained."""

    @property
    def environment(self) -> MoleculeEnvironment: ...

    @property
    def log_z(self) -> Tensor: ...

    def logits(self, molecules: Sequence[Molecule]) -> Tensor:
        """[G, W * A + 1] unnormalised log-probabilities of actions, or log flows."""
        ...


class FlowLoss(Protocol):
    def __call__(self, flows: Flows, trajectories: Sequence[Trajectory], log_reward: Tensor) -> Tensor:
        """The loss of B trajectories with log R [B]."""
        ...

    def log_z(self, flows: Flows) -> float:
        """The log of the total flow, as learned so far."""
        ...


class TrajectoryBalanceLoss:
    """Trajectory balance with a learned log Z; P_B is the uniform removal."""

    def __call__(self, flows: Flows, trajectories: Sequence[Trajectory], log_reward: Tensor) -> Tensor:
        states = [state for trajectory in trajectories for state in trajectory.states]
        actions = torch.tensor([action for trajectory in trajectories for action in trajectory.actions])
        logp = flows.logits(states).log_softmax(-1)
        chosen = logp.gather(-1, (actions % logp.shape[-1])[:, None]).squeeze(-1)  # STOP is −1, the last column
        counts = torch.tensor([count for trajectory in trajectories for count in trajectory.log_counts])
        log_pb = torch.tensor([value for trajectory in trajectories for value in trajectory.log_pb])
        n_steps = [len(trajectory.states) for trajectory in trajectories]
        log_pf = _padded(chosen + counts, n_steps)
        paths = FlowPaths(
            log_pf=log_pf,
            log_pb=_padded(log_pb, n_steps),
            log_reward=log_reward,
            log_flow=flows.log_z.expand_as(log_pf),
            is_step=torch.arange(log_pf.shape[1]) < torch.tensor(n_steps)[:, None],
        )
        return total(trajectory_balance(paths), {"trajectory": len(trajectories)})

    def log_z(self, flows: Flows) -> float:
        return float(flows.log_z.detach())


def _padded(flat: Tensor, n_steps: Sequence[int]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(flat.split(list(n_steps))), batch_first=True)


@dataclass(frozen=True, slots=True)
class FlowMatchingLoss:
    """Flow matching with every parent of every state visited; logits are log F(s, a)."""

    log_epsilon: float
    terminal_weight: float  # of the mean over stops, beside the mean over other states

    def __call__(self, flows: Flows, trajectories: Sequence[Trajectory], log_reward: Tensor) -> Tensor:
        visited = [state for trajectory in trajectories for state in trajectory.states[1:]]
        into = [flows.environment.steps_into(state) for state in visited]
        parents = list(dict.fromkeys(step.parent for steps in into for step in steps))
        ends = [trajectory.molecule for trajectory in trajectories]
        logits = flows.logits([*visited, *ends, *parents])
        n_inner, n_outer = len(visited), len(visited) + len(ends)
        place = {parent: n_outer + index for index, parent in enumerate(parents)}
        n_blocks = len(flows.environment.blocks)
        edges = [
            (place[s.parent], s.action.site * n_blocks + s.action.block, math.log(s.count / s.removal_count), owner)
            for owner, steps in enumerate(into)
            for s in steps
        ]
        rows, columns, weight, owner = (torch.tensor(column) for column in zip(*edges, strict=True))
        inflow = _logsumexp_by_owner(logits[rows, columns] + weight, owner, n_inner)
        inner = flow_matching(StateFlows(inflow, logits[:n_inner].logsumexp(-1)), self.log_epsilon)
        stops = flow_matching(StateFlows(logits[n_inner:n_outer, -1], log_reward), self.log_epsilon)
        weighted = [replace(term, coef=self.terminal_weight) for term in stops]
        return total(inner, {"state": n_inner}) + total(weighted, {"state": len(ends)})

    def log_z(self, flows: Flows) -> float:
        """The log of what flows out of the empty molecule."""
        with torch.no_grad():
            return float(flows.logits([EMPTY]).logsumexp(-1))


def _logsumexp_by_owner(x: Tensor, owner: Tensor, n_owners: int) -> Tensor:
    highest = x.detach().new_full((n_owners,), -torch.inf).scatter_reduce(0, owner, x.detach(), "amax")
    return highest + torch.zeros_like(highest).index_add(0, owner, (x - highest[owner]).exp()).log()
