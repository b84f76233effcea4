"""GFlowNet objectives: squared residuals of log flows along paths of a DAG, and at its states.

A trajectory goes from the source to a terminal object x and stops there. Its V is log F, its gain is log R − log P_F +
log P_B, its temperature 1: trajectory balance is the start residual of OREO with π_ref = P_B and β = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.losses.paths import path_residual
from posttrain.losses.term import Term


@dataclass(frozen=True, slots=True)
class FlowPaths:
    """B trajectories of at most T steps; the last step of each one stops. Padding follows it."""

    log_pf: Tensor  # [B, T] log P_F(a_t|s_t)
    log_pb: Tensor  # [B, T] log P_B(s_t|s_{t+1}); 0 at the stop, which has one parent
    log_reward: Tensor  # [B] log R(x) of the object it stops at
    log_flow: Tensor  # [B, T] log F(s_t) of the state before each step; the source's is log Z
    is_step: Tensor  # [B, T] bool: True up to the stop, and including it

    def __post_init__(self) -> None:
        shape = self.log_pf.shape
        of_steps = {"log_pb": self.log_pb, "log_flow": self.log_flow, "is_step": self.is_step}
        for name, tensor in of_steps.items():
            if tensor.shape != shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, log_pf is {tuple(shape)}: needed one per step")
        if self.log_reward.shape != shape[:1]:
            raise ValueError(f"log_reward is {tuple(self.log_reward.shape)}, needed one per trajectory ({shape[0]})")

    def gain(self) -> Tensor:
        """[B, T] log P_B − log P_F of each step, with log R at the stop; 0 in the padding."""
        is_stop = self.is_step.long().cumsum(-1) == self.is_step.sum(-1, keepdim=True)
        stopped = torch.where(is_stop, self.log_reward[:, None], 0.0)
        return torch.where(self.is_step, stopped + self.log_pb - self.log_pf, 0.0)


def trajectory_balance(paths: FlowPaths) -> tuple[Term, ...]:
    """(log Z + Σ log P_F − log R − Σ log P_B)² of each trajectory (Malkin et al. 2022, arXiv 2201.13259).

    Of `log_flow` only the source's is read: log Z.
    """
    residual = path_residual(paths.log_flow[:, 0], paths.gain().sum(-1))
    return (Term("trajectory_balance", residual.square(), "trajectory"),)


def var_grad(paths: FlowPaths) -> tuple[Term, ...]:
    """Trajectory balance with log Z taken from the batch, detached: there is nothing to learn beside the policy.

    Its gradient is that of trajectory balance at log Z = the batch's mean of Σ gain (Richter et al. 2020, arXiv
    2010.10436). Raises ValueError for a single trajectory, whose loss is 0 whatever the policy.
    """
    gain = paths.gain().sum(-1)
    if len(gain) < 2:
        raise ValueError("got one trajectory, needed two or more: log Z is their mean")
    residual = path_residual(gain.mean().detach(), gain)
    return (Term("var_grad", residual.square(), "trajectory"),)


def detailed_balance(paths: FlowPaths) -> tuple[Term, ...]:
    """(log F(s) + log P_F − log F(s') − log P_B)² of each step; at the stop log F(x) + log P_F(stop|x) − log R(x)."""
    flow = torch.where(paths.is_step, paths.log_flow, 0.0)
    after = torch.nn.functional.pad(flow[:, 1:], (0, 1))  # after the stop: 0
    return (Term("detailed_balance", path_residual(flow, paths.gain(), after).square(), "transition"),)


def sub_trajectory_balance(paths: FlowPaths, decay: float) -> tuple[Term, ...]:
    """All pieces from state i to state j > i, weighted by decay^(j − i), the weights of a trajectory summing to 1.

    decay → 0 gives detailed balance (a mean over each trajectory's steps), decay → ∞ trajectory balance (Madan et al.
    2023, arXiv 2209.12782). Raises ValueError for a decay that is not positive.
    """
    if not decay > 0:
        raise ValueError(f"decay is {decay}, needs decay > 0: near 0 it is detailed balance, which has its own name")
    n_steps = paths.is_step.shape[-1]
    is_state = torch.nn.functional.pad(paths.is_step, (1, 0), value=True)  # [B, T + 1], the end among them
    flow = torch.nn.functional.pad(torch.where(paths.is_step, paths.log_flow, 0.0), (0, 1))  # after the stop: 0
    gain = torch.nn.functional.pad(paths.gain().cumsum(-1), (1, 0))  # from the source to each state
    residual = path_residual(flow[:, :, None], gain[:, None, :] - gain[:, :, None], flow[:, None, :])
    place = torch.arange(n_steps + 1, dtype=gain.dtype, device=gain.device)
    length = place[None, :] - place[:, None]
    is_piece = (length > 0) & is_state[:, None, :]
    log_weight = torch.where(is_piece, length * math.log(decay), -torch.inf)
    weight = log_weight.flatten(1).softmax(-1).view_as(log_weight)
    value = torch.where(is_piece, weight * residual.square(), 0.0)
    return (Term("sub_trajectory_balance", value.sum((-2, -1)), "trajectory"),)


@dataclass(frozen=True, slots=True)
class StateFlows:
    """Log flows into and out of N states other than the source."""

    log_inflow: Tensor  # [N] logsumexp of log F(s → s') over all parents s of s'
    log_outflow: Tensor  # [N] logsumexp of log F(s' → s'') over all children, and of log R(s') where it may stop

    def __post_init__(self) -> None:
        if self.log_inflow.shape != self.log_outflow.shape:
            shapes = f"{tuple(self.log_inflow.shape)} and {tuple(self.log_outflow.shape)}"
            raise ValueError(f"log_inflow and log_outflow are {shapes}: needed one of each per state")


def flow_matching(flows: StateFlows, log_epsilon: float = -math.inf) -> tuple[Term, ...]:
    """(log[ε + inflow] − log[ε + outflow])² of each state (Bengio et al. 2021, arXiv 2106.04399, eq. 12).

    ε trades large flows against small ones: a flow F has its gradient scaled by F / (ε + F).
    """
    log_floor = torch.full_like(flows.log_inflow, log_epsilon)
    inflow, outflow = (torch.logaddexp(flow, log_floor) for flow in (flows.log_inflow, flows.log_outflow))
    return (Term("flow_matching", path_residual(inflow, outflow).square(), "state"),)
