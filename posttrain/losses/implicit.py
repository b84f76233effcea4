"""The token-level Q, V, advantage and reward that a language model stands for beside a reference.

A softmax over logits is the soft-optimal policy of some reward: with V(s) = β log Σ_a e^{Q(s,a)/β} and
π = e^{(Q − V)/β}, reading β · logits as Q fixes everything else (arXiv 2404.12358 v2, Section 4.1, Lemma 1). Two Qs go
by one name:

    Q including the reference   Q'(s, a) = r(s, a) + β log π_ref(a|s) + V(s')     the paper's (Eq. 5), β · logits
    Q excluding the reference   q (s, a) = r(s, a) + V(s') = Q' − β log π_ref     what a critic of rewards estimates

s' is the state after a, and V = 0 after the last action. Adding c(s) to all logits of a state changes no probability,
adds β c(s) to both Qs and V, and shapes the reward: r changes by β (c(s) − c(s')). So Q, V and r are known up to such
a potential; the advantage does not move.

Last axis A: the vocabulary. All in reward units. Nothing here is detached.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.losses.paths import log_ratio


def q_including_reference(logits: Tensor, *, beta: float) -> Tensor:
    """[..., A] Q' = β · logits: contains β log π_ref."""
    return beta * logits


def q_excluding_reference(logits: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """[..., A] q = β · (logits − log π_ref), with ref_logp [..., A] normalised over A."""
    return beta * (logits - ref_logp)


def soft_value(logits: Tensor, *, beta: float) -> Tensor:
    """[...] V = β log Σ_a e^{logits} = β log Σ_a e^{Q'/β} = β log Σ_a π_ref e^{q/β}: one V for both Qs."""
    return beta * torch.logsumexp(logits, dim=-1)


def implicit_advantage(logp: Tensor, ref_logp: Tensor, is_action: Tensor, *, beta: float) -> Tensor:
    """[B, T] β log π/π_ref of the chosen tokens = r + V(s') − V(s) = q − V (Eqs. 10 and 11); 0 off the actions.

    The credit of a token: it sums to R − V(s_0) over an answer. It is an advantage and a shaped reward at once:
    solving the problem again with it as the reward gives V = 0 and the same policy.
    """
    return beta * log_ratio(logp, ref_logp, is_action)


def implicit_reward(q: Tensor, next_value: Tensor) -> Tensor:
    """[...] r = q(s, a) − V(s') of the chosen actions, q excluding the reference; next_value is 0 after the last one.

    Lemma 1. Known up to shaping, as q and V are.
    """
    return q - next_value


def proxy_logp(base_logp: Tensor, logp: Tensor, ref_logp: Tensor, *, exponent: float) -> Tensor:
    """[..., A] log of  π_base · (π/π_ref)^exponent, normalised: a pair's advantages on another model (Eqs. 14, 15).

    With π_base = π_ref the exponent k gives the policy for the temperature β/k, as far as q stays that of β.
    """
    return torch.log_softmax(base_logp + exponent * (logp - ref_logp), dim=-1)
