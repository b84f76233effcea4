"""Sampled strings as the values that the library's objectives read, and the objectives by name.

All are at temperature 1 with a uniform reference, log R the reward of a string. Then trajectory balance, OREO and the
policy gradient with the log-ratio in its reward have one optimum, π = R/Z; the plain policy gradient and GRPO maximise
E[R], for which any distribution over solutions will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from posttrain.losses import (
    FlowPaths,
    Term,
    group_mean_advantage,
    grpo,
    leave_one_out_advantage,
    oreo_token,
    reinforce,
    scale_by_group_std,
    trajectory_balance,
)
from posttrain.schema import RolloutValues, TokenValues
from posttrain.studies.strings.task import N_DIGITS

CLIP = 0.2


class Method(StrEnum):
    TRAJECTORY_BALANCE = "trajectory_balance"
    OREO = "oreo"
    SOFT_POLICY_GRADIENT = "soft_policy_gradient"
    POLICY_GRADIENT = "policy_gradient"
    GRPO = "grpo"


SAMPLES_TARGET = (Method.TRAJECTORY_BALANCE, Method.OREO, Method.SOFT_POLICY_GRADIENT)  # whose optimum is R/Z


@dataclass(frozen=True, slots=True)
class StringBatch:
    """B strings with what the networks say of them."""

    strings: Tensor  # [B, k]
    logp_all: Tensor  # [B, k, 10] log π of every digit, with gradient
    reward: Tensor  # [B] R > 0
    value: Tensor  # [B, k] V of each prefix; of trajectory balance and policy gradients not read
    log_z: Tensor  # scalar, of trajectory balance alone

    @property
    def logp(self) -> Tensor:
        """[B, k] log π of the digits taken."""
        return self.logp_all.gather(-1, self.strings[..., None])[..., 0]

    @property
    def log_reward(self) -> Tensor:
        return self.reward.log().to(self.logp_all.dtype)


def flow_paths(batch: StringBatch) -> FlowPaths:
    """A string is a path of a tree: each prefix has one parent, so log P_B = 0."""
    logp = batch.logp
    log_flow = torch.cat((batch.log_z.expand(len(logp), 1), torch.zeros_like(logp[:, 1:])), dim=-1)
    return FlowPaths(logp, torch.zeros_like(logp), batch.log_reward, log_flow, torch.ones_like(logp, dtype=torch.bool))


def token_values(batch: StringBatch) -> TokenValues:
    """The same strings for OREO: π_ref uniform, the reward log R on the last digit."""
    logp = batch.logp
    reward = torch.cat((torch.zeros_like(logp[:, 1:]), batch.log_reward[:, None]), dim=-1)
    is_action = torch.ones_like(logp, dtype=torch.bool)
    entropy = _entropy(batch.logp_all)
    ref_logp = torch.full_like(logp, -math.log(N_DIGITS))
    kl = math.log(N_DIGITS) - entropy
    return TokenValues(logp, ref_logp, kl, entropy.detach(), batch.value, reward, is_action, is_action)


def rollout_values(batch: StringBatch, advantage: Tensor) -> RolloutValues:
    """The same strings for policy gradients, with one advantage for a string, [B]."""
    logp = batch.logp
    entropy = _entropy(batch.logp_all)
    return RolloutValues(
        logp=logp,
        behavior_logp=logp.detach(),
        advantage=advantage[:, None].to(logp.dtype).expand_as(logp),
        kl=math.log(N_DIGITS) - entropy,
        entropy=entropy.detach(),
        is_action=torch.ones_like(logp, dtype=torch.bool),
    )


def _soft_policy_gradient(batch: StringBatch) -> tuple[Term, ...]:
    """R enters as log R − Σ log π/π_ref: in expectation, half the gradient of trajectory balance on own samples."""
    log_ratio = batch.logp.detach().sum(-1) + batch.strings.shape[-1] * math.log(N_DIGITS)
    advantage = leave_one_out_advantage(batch.log_reward - log_ratio, _one_group(batch))
    return reinforce(rollout_values(batch, advantage), alpha=0.0)


def _policy_gradient(batch: StringBatch) -> tuple[Term, ...]:
    return reinforce(rollout_values(batch, leave_one_out_advantage(batch.reward, _one_group(batch))), alpha=0.0)


def _grpo(batch: StringBatch) -> tuple[Term, ...]:
    group = _one_group(batch)
    advantage = scale_by_group_std(group_mean_advantage(batch.reward, group), group)
    return grpo(rollout_values(batch, advantage), clip_low=CLIP, clip_high=CLIP, alpha=0.0)


OBJECTIVES: dict[Method, Callable[[StringBatch], tuple[Term, ...]]] = {
    Method.TRAJECTORY_BALANCE: lambda batch: trajectory_balance(flow_paths(batch)),
    Method.OREO: lambda batch: oreo_token(token_values(batch), beta=1.0, alpha=0.0),
    Method.SOFT_POLICY_GRADIENT: _soft_policy_gradient,
    Method.POLICY_GRADIENT: _policy_gradient,
    Method.GRPO: _grpo,
}


def _one_group(batch: StringBatch) -> Tensor:
    """All strings answer the same prompt."""
    return torch.zeros(len(batch.strings), dtype=torch.long)


def _entropy(logp_all: Tensor) -> Tensor:
    return -(logp_all.exp() * logp_all).sum(-1)
