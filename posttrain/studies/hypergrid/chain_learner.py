"""Markov chains over the objects of a hypergrid: a uniform proposal, or MARS, which learns its proposal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from posttrain.control.gflownet.chains import (
    log_acceptance,
    log_acceptance_of_rewards,
    neighbours,
    uniform_proposal,
    walk,
)
from posttrain.control.gflownet.hypergrid import Hypergrid
from posttrain.studies.hypergrid.network import cell_network
from posttrain.studies.hypergrid.sample_log import SampleLog

UNIFORM_SHARE = 0.1  # of MARS' proposals


class Acceptance(StrEnum):
    HASTINGS = "hastings"  # R'/R · q(x|x')/q(x'|x)
    REWARD_RATIO = "reward_ratio"  # R'/R alone, as in the paper's code


@dataclass(frozen=True, slots=True)
class ChainSettings:
    n_chains: int
    n_sweep: int  # steps of all chains in one update
    width: int  # MARS' network
    learning_rate: float  # MARS'


class ChainLearner:
    """Metropolis-Hastings from the source with a uniform proposal. Nothing is learned: an update is a sweep.

    What it samples is judged by where the chains were in the later half to three quarters of the run.
    """

    def __init__(self, grid: Hypergrid, acceptance: Acceptance, settings: ChainSettings, *, seed: int) -> None:
        self.grid, self.settings = grid, settings
        self.generator = torch.Generator().manual_seed(seed)
        self.log_q = uniform_proposal(grid.graph)
        self.log_accept = (
            log_acceptance(grid.graph, self.log_q)
            if acceptance is Acceptance.HASTINGS
            else log_acceptance_of_rewards(grid.graph)
        )
        self.state_of_chain = torch.zeros(settings.n_chains, dtype=torch.int64)
        self.log = SampleLog(grid)
        self.window = LateSamples(grid.graph.n_states)

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        """Move every chain n_sweep times."""
        states, _ = self.sweep(self.log_q, self.log_accept)
        return {"moved": (states[1:] != states[:-1]).float().mean()}

    def sweep(self, log_q: Tensor, log_accept: Tensor) -> tuple[Tensor, Tensor]:
        """`walk` from where the chains are, counted."""
        settings = self.settings
        states, proposals = walk(
            self.grid.graph, log_q, log_accept, self.state_of_chain, settings.n_sweep, self.generator
        )
        self.state_of_chain = states[-1]
        self.log.add(states[1:].flatten(), n_states=proposals.numel())
        self.window.add(states[1:])
        return states, proposals

    def distribution(self) -> Tensor:
        return self.window.distribution()

    def evaluate(self) -> Mapping[str, float]:
        return self.log.measure(self.distribution())

    def state(self) -> dict[str, Any]:
        return {
            "chains": self.state_of_chain,
            "generator": self.generator.get_state(),
            "log": self.log.state(),
            "window": self.window.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.state_of_chain = state["chains"]
        self.generator.set_state(state["generator"])
        self.log.load_state(state["log"])
        self.window.load_state(state["window"])


class LateSamples:
    """Counts of objects in the later half to three quarters of a run whose length is not known beforehand."""

    def __init__(self, n_objects: int) -> None:
        self.n_steps = 0
        self.starts_at = 1  # step of the later window; it moves each time the run has doubled
        self.earlier, self.later = torch.zeros(2, n_objects, dtype=torch.int64)

    def add(self, states: Tensor) -> None:
        """States [n_steps, C]."""
        if self.n_steps >= 2 * self.starts_at:
            self.starts_at = self.n_steps
            self.earlier, self.later = self.later, torch.zeros_like(self.later)
        self.later += torch.bincount(states.flatten(), minlength=len(self.later))
        self.n_steps += len(states)

    def distribution(self) -> Tensor:
        """[S] float64, the share of each object."""
        counts = (self.earlier + self.later).double()
        return counts / counts.sum()

    def state(self) -> dict[str, Any]:
        return {"n_steps": self.n_steps, "starts_at": self.starts_at, "earlier": self.earlier, "later": self.later}

    def load_state(self, state: dict[str, Any]) -> None:
        self.n_steps, self.starts_at = state["n_steps"], state["starts_at"]
        self.earlier, self.later = state["earlier"], state["later"]


class MarsLearner(ChainLearner):
    """MARS (Xie et al. 2021, arXiv 2103.10432): the proposal is learned from the moves that raised the reward.

    A proposal is forward or backward with equal chances where both are possible, and a softmax over the actions then.
    Moves are accepted by the whole Hastings ratio; the GFlowNet paper's code leaves the proposals out of it. A share
    of the proposals is uniform: learned from better moves alone, a proposal forgets how a chain leaves a peak.
    """

    def __init__(self, grid: Hypergrid, settings: ChainSettings, *, seed: int) -> None:
        super().__init__(grid, Acceptance.HASTINGS, settings, seed=seed)
        self.is_near = neighbours(grid.graph) >= 0
        self.one_hot = grid.one_hot()
        n_neighbours = self.is_near.shape[1]
        self.network = cell_network(grid, n_neighbours, width=settings.width, generator=self.generator)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate, fused=True)

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        """A sweep by the proposal as it is, then one step of Adam on the sweep's moves that raised the reward."""
        with torch.no_grad():
            learned = self.proposal(torch.arange(self.grid.graph.n_states))
            log_q = torch.logaddexp(learned + math.log(1 - UNIFORM_SHARE), self.log_q + math.log(UNIFORM_SHARE))
        states, proposals = self.sweep(log_q, log_acceptance(self.grid.graph, log_q))
        before, after = states[:-1], states[1:]
        is_better = self.grid.graph.log_reward[after] > self.grid.graph.log_reward[before]
        n_better = int(is_better.sum())
        if n_better:
            learned = self.proposal(before[is_better])
            loss = -learned.gather(-1, proposals[is_better][:, None]).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return {"better_moves": n_better / is_better.numel()}

    def proposal(self, states: Tensor) -> Tensor:
        """[R, N] log q of the neighbours of `states` [R]."""
        shape = (len(states), 2, self.grid.graph.n_moves)  # forward, backward
        is_near, logits = self.is_near[states].view(shape), self.network(self.one_hot[states]).view(shape)
        n_directions = is_near.any(-1).sum(-1, keepdim=True).float()
        return _log_softmax_of(logits, is_near).flatten(1) - n_directions.log()

    def state(self) -> dict[str, Any]:
        learned = {"network": dict(self.network.state_dict()), "optimizer": self.optimizer.state_dict()}
        return {**super().state(), **learned}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def _log_softmax_of(logits: Tensor, is_possible: Tensor) -> Tensor:
    """Over the possible entries of a row, −inf elsewhere; all −inf where there is none."""
    has_none = ~is_possible.any(-1, keepdim=True)
    log_p = torch.where(is_possible | has_none, logits, -torch.inf).log_softmax(-1)
    return torch.where(is_possible, log_p, -torch.inf)
