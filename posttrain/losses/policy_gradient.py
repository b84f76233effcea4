"""Policy gradients on sampled tokens. Advantages are constants: make them with posttrain.losses.advantages.

In all of them "policy" moves the policy through logp where is_action and nothing else; behavior_logp and the advantage
are held fixed. "kl_ref" is the exact KL(π‖π_ref) in the visited states, and its gradient is that of this number. The
papers sample k3 of a KL instead: functions of their own here, to be added to an objective whose alpha is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.losses.kl import kl_k3
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


def kl_ref_k3(v: RolloutValues, *, alpha: float) -> tuple[Term, ...]:
    """α · k3 of log π/π_ref at the sampled tokens, each sequence the mean over its actions (arXiv 2402.03300, Eq. 4).

    On the policy's own samples its value estimates KL(π‖π_ref), but its gradient is that of the other direction,
    KL(π_ref‖π): it pulls π over all that the reference does, where "kl_ref" keeps π off what the reference does not.
    Raises ValueError when v.ref_logp is None.
    """
    if v.ref_logp is None:
        raise ValueError("ref_logp is None, needs log pi_ref(a_t | s_t) [B, T]: have the forward fill it too")
    k3 = kl_k3(log_ratio(v.logp, v.ref_logp.detach(), v.is_action))
    return (Term("kl_ref_k3", per_sequence_mean(k3, v.is_action), "sequence", coef=alpha),)


def kl_rollout(v: RolloutValues, *, alpha: float) -> tuple[Term, ...]:
    """α · KL(π_behavior‖π), k3 of log π_behavior/π at tokens of π_behavior: unbiased, and so is its gradient.

    At π = π_behavior value and gradient are exactly 0, token by token: with one update per batch of samples this term
    does nothing, whatever α. (Selftok-Zero, arXiv 2505.07538, prints k3 of the inverse ratio: at
    that point it is 0 too, and away from it its mean is χ²(π_behavior‖π) − KL(π_behavior‖π).)
    """
    k3 = kl_k3(-_log_ratio(v))
    return (Term("kl_rollout", per_sequence_mean(k3, v.is_action), "sequence", coef=alpha),)


def _advantage(v: RolloutValues) -> Tensor:
    return torch.where(v.is_action, v.advantage.detach(), 0.0)


def _log_ratio(v: RolloutValues) -> Tensor:
    return log_ratio(v.logp, v.behavior_logp.detach(), v.is_action)


def _ratio(v: RolloutValues) -> Tensor:
    return _log_ratio(v).exp()  # 1 off the actions


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
