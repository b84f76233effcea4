"""Policy gradients on sampled tokens. Advantages are constants: make them with posttrain.losses.advantages.

In all of them "policy" moves the policy through logp where is_action and nothing else; behavior_logp and the advantage
are held fixed. "kl_ref" is the exact KL(π‖π_ref) in the visited states, where the papers sample k3 of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.losses.paths import log_ratio, per_sequence_mean
from posttrain.losses.term import Term
from posttrain.schema import RolloutValues


def reinforce(v: RolloutValues, *, alpha: float) -> tuple[Term, ...]:
    """−Σ_t A_t log π(a_t|s_t) per sequence: on its own samples, the gradient of −(expected return).

    (R. J. Williams, 1992.) A sum, not a mean, over tokens: dividing by the length would no longer be that gradient.
    """
    gain = _advantage(v) * torch.where(v.is_action, v.logp, 0.0)
    return (Term("policy", -gain, "sequence"), *_kl_and_metrics(v, alpha))


def grpo(v: RolloutValues, *, clip_low: float, clip_high: float, alpha: float) -> tuple[Term, ...]:
    """−min(w A, clip(w) A), w = π/π_behavior per token, averaged within each sequence (arXiv 2402.03300, Eq. 3).

    clip keeps w within [1 − clip_low, 1 + clip_high]. The mean makes a token of a long answer weigh less.
    """
    gain = per_sequence_mean(_clipped_gain(v, clip_low, clip_high), v.is_action)
    clipped = per_sequence_mean(_is_clipped(v, clip_low, clip_high), v.is_action)
    return (
        Term("policy", -gain, "sequence"),
        Term("policy/clip_fraction", clipped, "sequence", coef=0.0),
        *_kl_and_metrics(v, alpha),
    )


def grpo_token_mean(v: RolloutValues, *, clip_low: float, clip_high: float, alpha: float) -> tuple[Term, ...]:
    """The clipped gain of `grpo`, averaged over all tokens of the step: every token weighs the same.

    (The token-level loss of arXiv 2503.14476.) Count the unit "token" as the number of actions.
    """
    return (
        Term("policy", -_clipped_gain(v, clip_low, clip_high), "token"),
        Term("policy/clip_fraction", _is_clipped(v, clip_low, clip_high), "token", coef=0.0),
        *_kl_and_metrics(v, alpha),
    )


def _advantage(v: RolloutValues) -> Tensor:
    return torch.where(v.is_action, v.advantage.detach(), 0.0)


def _ratio(v: RolloutValues) -> Tensor:
    return log_ratio(v.logp, v.behavior_logp.detach(), v.is_action).exp()  # 1 off the actions


def _clipped_gain(v: RolloutValues, clip_low: float, clip_high: float) -> Tensor:
    ratio, advantage = _ratio(v), _advantage(v)
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def _is_clipped(v: RolloutValues, clip_low: float, clip_high: float) -> Tensor:
    """1 where the clip stops the gradient: past the bound on the side to which the advantage pulls."""
    ratio, advantage = _ratio(v).detach(), _advantage(v)
    is_clipped = ((advantage > 0) & (ratio > 1 + clip_high)) | ((advantage < 0) & (ratio < 1 - clip_low))
    return is_clipped.to(ratio.dtype)


def _kl_and_metrics(v: RolloutValues, alpha: float) -> tuple[Term, ...]:
    return (
        Term("kl_ref", per_sequence_mean(v.kl, v.is_action), "sequence", coef=alpha),
        Term("policy/entropy", per_sequence_mean(v.entropy, v.is_action), "sequence", coef=0.0),
        Term("policy/advantage", per_sequence_mean(_advantage(v), v.is_action), "sequence", coef=0.0),
    )
