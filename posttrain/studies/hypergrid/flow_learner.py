"""A GFlowNet learner on a hypergrid.

Where the batch is large for the grid, the network is called once for an update, on all states, and trajectories are
read from its table. Otherwise it is called for each step, and once on the states that the update needs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from posttrain.control.gflownet.exact import terminal_distribution, uniform_forward
from posttrain.control.gflownet.hypergrid import Hypergrid
from posttrain.control.gflownet.rollouts import Policy, Trajectories, joined, sample_backward, sample_forward
from posttrain.control.gflownet.values import StateTables, end_flows, flow_paths, interior_flows, visited_after_source
from posttrain.losses import (
    FlowPaths,
    StateFlows,
    Term,
    detailed_balance,
    flow_matching,
    sub_trajectory_balance,
    total,
    trajectory_balance,
    var_grad,
)
from posttrain.studies.hypergrid.flow_model import Backward, FlowModel
from posttrain.studies.hypergrid.sample_log import SampleLog
from posttrain.training.ema import update_ema

STATES_PER_TRAJECTORY = 32  # of the grid: with fewer, one call on all states costs less than a call for each step


class Balance(StrEnum):
    """What the flows have to satisfy."""

    FLOW_MATCHING = "flow_matching"
    FLOW_MATCHING_ALL = "flow_matching_all"  # at every state of the graph; nothing is sampled to learn from
    DETAILED = "detailed"
    TRAJECTORY = "trajectory"
    SUB_TRAJECTORY = "sub_trajectory"
    VAR_GRAD = "var_grad"


@dataclass(frozen=True, slots=True)
class FlowMethod:
    balance: Balance
    backward: Backward = Backward.UNIFORM  # flow matching has none
    exploration: float = 0.0  # share of actions drawn uniformly
    replay: float = 0.0  # share of trajectories that go backward from objects found, drawn by their reward


@dataclass(frozen=True, slots=True)
class FlowSettings:
    batch_size: int  # trajectories of an update
    width: int
    learning_rate: float
    log_z_learning_rate: float
    sub_trajectory_decay: float
    log_epsilon: float  # of flow matching; −inf for none
    average_decay: float  # of the average of the weights, which is what is evaluated


class FlowLearner:
    """Trains a FlowModel by a FlowMethod. Fits the protocol of posttrain.training.loop."""

    def __init__(self, grid: Hypergrid, method: FlowMethod, settings: FlowSettings, *, seed: int) -> None:
        self.grid, self.method, self.settings = grid, method, settings
        self.generator = torch.Generator().manual_seed(seed)
        self.model = FlowModel(grid, method.backward, width=settings.width, generator=self.generator)
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.model.network.parameters(), "lr": settings.learning_rate},
                {"params": [self.model.log_z], "lr": settings.log_z_learning_rate},
            ],
            fused=True,
        )
        self.average = copy.deepcopy(self.model.network).requires_grad_(False)
        self.uniform = uniform_forward(grid.graph).exp().float()
        self.log = SampleLog(grid)
        self.reads_all = grid.graph.n_states <= STATES_PER_TRAJECTORY * settings.batch_size

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        """Sample, and move the flows by one step of Adam."""
        loss = self._loss_everywhere() if self.method.balance is Balance.FLOW_MATCHING_ALL else self._loss_of_batch()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        # Early on the average is over all steps so far: the start has no place in it.
        decay = min(self.settings.average_decay, (step + 1) / (step + 10))
        update_ema(self.average, self.model.network, decay=decay)
        return {"loss": loss.detach(), "log_z": self.model.log_z.detach()}

    @torch.no_grad()
    def distribution(self) -> Tensor:
        """[S] what the averaged policy samples, exactly; without exploration."""
        return terminal_distribution(self.grid.graph, self.model.policy(self.average))

    def evaluate(self) -> Mapping[str, float]:
        return self.log.measure(self.distribution())

    def state(self) -> dict[str, Any]:
        return {
            "network": dict(self.model.network.state_dict()),
            "average": dict(self.average.state_dict()),
            "log_z": self.model.log_z.detach(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "log": self.log.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.model.log_z.data.copy_(state["log_z"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.log.load_state(state["log"])

    def _loss_everywhere(self) -> Tensor:
        graph, states = self.grid.graph, self.model.states
        self.log.see(states, n_states=graph.n_states)
        tables = self.model.tables(states)
        return self._flow_matching(interior_flows(graph, states[1:], tables), end_flows(graph, states, tables))

    def _loss_of_batch(self) -> Tensor:
        graph = self.grid.graph
        tables = self.model.tables(self.model.states) if self.reads_all else None
        trajectories = self._act(tables)
        self.log.add(trajectories.end, n_states=trajectories.n_visited)
        if tables is None:
            tables = self.model.tables(self._states_of(trajectories))
        if self.method.balance is Balance.FLOW_MATCHING:
            interior = interior_flows(graph, visited_after_source(trajectories), tables)
            return self._flow_matching(interior, end_flows(graph, trajectories.end, tables))
        counts = {"trajectory": len(trajectories.end), "transition": trajectories.n_visited}
        return total(self._path_terms(flow_paths(graph, trajectories, tables)), counts)

    def _flow_matching(self, *flows: StateFlows) -> Tensor:
        """The mean over all states given, the ends among them, as the paper takes it."""
        log_inflow = torch.cat([part.log_inflow for part in flows])
        values = StateFlows(log_inflow, torch.cat([part.log_outflow for part in flows]))
        return total(flow_matching(values, self.settings.log_epsilon), {"state": len(log_inflow)})

    def _path_terms(self, paths: FlowPaths) -> tuple[Term, ...]:
        match self.method.balance:
            case Balance.DETAILED:
                return detailed_balance(paths)
            case Balance.TRAJECTORY:
                return trajectory_balance(paths)
            case Balance.SUB_TRAJECTORY:
                return sub_trajectory_balance(paths, self.settings.sub_trajectory_decay)
            case Balance.VAR_GRAD:
                return var_grad(paths)
        raise ValueError(f"{self.method.balance} is no balance of paths")

    def _act(self, tables: StateTables | None) -> Trajectories:
        graph, batch_size = self.grid.graph, self.settings.batch_size
        policy: Policy = self.model.probabilities
        if tables is not None:
            policy = tables.log_edge.detach().softmax(-1).__getitem__
        n_replayed = int(self.method.replay * batch_size) if self.log.n_objects else 0
        forward = sample_forward(graph, self._explored(policy), batch_size - n_replayed, self.generator)
        if not n_replayed:
            return forward
        reward_found = torch.where(self.log.is_found, graph.log_reward.exp(), 0.0)
        end = torch.multinomial(reward_found, n_replayed, replacement=True, generator=self.generator)
        return joined(forward, sample_backward(graph, self.model.fixed_log_pb, end, self.generator))

    def _explored(self, policy: Policy) -> Policy:
        share = self.method.exploration
        if share == 0.0:
            return policy
        return lambda states: (1 - share) * policy(states) + share * self.uniform[states]

    def _states_of(self, trajectories: Trajectories) -> Tensor:
        is_needed = torch.zeros(self.grid.graph.n_states, dtype=torch.bool)
        visited = trajectories.state.flatten()
        is_needed[visited] = True
        if self.method.balance is Balance.FLOW_MATCHING:
            parents = self.grid.graph.parent[visited]
            is_needed[parents[parents >= 0]] = True
        return is_needed.nonzero()[:, 0]
