"""Objectives: pure functions from values to summed terms. No network, config, device or file is seen here."""

from posttrain.losses.advantages import group_mean_advantage, leave_one_out_advantage, scale_by_group_std
from posttrain.losses.implicit import (
    implicit_advantage,
    implicit_reward,
    proxy_logp,
    q_excluding_reference,
    q_including_reference,
    soft_value,
)
from posttrain.losses.kl import kl_from_reference, kl_k1, kl_k2, kl_k3, kl_to_reference
from posttrain.losses.oreo import (
    critic_only,
    effective_temperature,
    oreo_one_step,
    oreo_response,
    oreo_step,
    oreo_token,
)
from posttrain.losses.paths import (
    afterstates,
    at_next_state,
    first_state,
    later_sum,
    log_ratio,
    next_state_index,
    path_residual,
    per_sequence_mean,
    suffix_sum,
    sum_to_next_state,
)
from posttrain.losses.policy_gradient import grpo, grpo_token_mean, kl_ref_k3, kl_rollout, reinforce
from posttrain.losses.preference import dpo, dpo_smoothed, implicit_return, ipo, without_reference
from posttrain.losses.term import Counts, Objective, Term, Unit, total

__all__ = [
    "Counts",
    "Objective",
    "Term",
    "Unit",
    "afterstates",
    "at_next_state",
    "critic_only",
    "dpo",
    "dpo_smoothed",
    "effective_temperature",
    "first_state",
    "group_mean_advantage",
    "grpo",
    "grpo_token_mean",
    "implicit_advantage",
    "implicit_return",
    "implicit_reward",
    "ipo",
    "kl_from_reference",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_ref_k3",
    "kl_rollout",
    "kl_to_reference",
    "later_sum",
    "leave_one_out_advantage",
    "log_ratio",
    "next_state_index",
    "oreo_one_step",
    "oreo_response",
    "oreo_step",
    "oreo_token",
    "path_residual",
    "per_sequence_mean",
    "proxy_logp",
    "q_excluding_reference",
    "q_including_reference",
    "reinforce",
    "scale_by_group_std",
    "soft_value",
    "suffix_sum",
    "sum_to_next_state",
    "total",
    "without_reference",
]
