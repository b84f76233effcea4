"""The network of a GFlowNet on a hypergrid, and what it says of states."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn

from posttrain.control.gflownet.exact import max_entropy_backward, uniform_backward
from posttrain.control.gflownet.hypergrid import Hypergrid
from posttrain.control.gflownet.values import StateTables
from posttrain.studies.hypergrid.network import cell_network


class Backward(StrEnum):
    """P_B: how a flow into a state is split among its parents."""

    UNIFORM = "uniform"
    MAX_ENTROPY = "max_entropy"
    LEARNED = "learned"


class FlowModel:
    """The network and log Z, and what they say of states."""

    def __init__(self, grid: Hypergrid, backward: Backward, *, width: int, generator: torch.Generator) -> None:
        self.grid, self.backward = grid, backward
        graph = grid.graph
        n_outputs = graph.n_moves + 2 + (graph.n_moves if backward is Backward.LEARNED else 0)
        self.network = cell_network(grid, n_outputs, width=width, generator=generator)
        self.log_z = nn.Parameter(torch.zeros(()))
        self.one_hot, self.is_legal, self.is_parent = grid.one_hot(), graph.is_legal, graph.is_parent
        self.states = torch.arange(graph.n_states)
        self.fixed_log_pb = (
            max_entropy_backward(graph) if backward is Backward.MAX_ENTROPY else uniform_backward(graph)
        )
        self._finite_log_pb = torch.where(self.is_parent, self.fixed_log_pb, 0.0).float()

    def policy(self, network: nn.Module) -> Tensor:
        """[S, A + 1] log P_F by `network`, this one or an average of it, in every state."""
        logits = network(self.one_hot)[:, : self.is_legal.shape[1]]
        return torch.where(self.is_legal, logits, -torch.inf).log_softmax(-1)

    def tables(self, states: Tensor) -> StateTables:
        """What they say of `states` [R], each named once."""
        output = self.network(self.one_hot[states])
        n_actions = self.is_legal.shape[1]
        return StateTables(
            log_edge=torch.where(self.is_legal[states], output[:, :n_actions], -torch.inf),
            log_pb=self._log_pb(output[:, n_actions + 1 :], states),
            log_flow=torch.where(states == 0, self.log_z, output[:, n_actions]),
            row=self._rows(states),
        )

    def _rows(self, states: Tensor) -> Tensor:
        # A state that was not asked for has a row past the end, so that reading it is an error.
        row = torch.full_like(self.states, len(self.states))
        row[states] = torch.arange(len(states))
        return row

    @torch.no_grad()
    def probabilities(self, states: Tensor) -> Tensor:
        """[B, A + 1] P_F in `states` [B]."""
        logits = self.network(self.one_hot[states])[:, : self.is_legal.shape[1]]
        return torch.where(self.is_legal[states], logits, -torch.inf).softmax(-1)

    def _log_pb(self, logits: Tensor, states: Tensor) -> Tensor:
        if self.backward is not Backward.LEARNED:
            return self._finite_log_pb[states]
        is_parent = self.is_parent[states]
        # The source has no parent, and a softmax over nothing is NaN; no step reads its row.
        is_kept = is_parent | (states == 0)[:, None]
        log_pb = torch.where(is_kept, logits, -torch.inf).log_softmax(-1)
        return torch.where(is_parent, log_pb, 0.0)
