"""OREO: policy and value learned together from the soft Bellman equation (arXiv 2412.16145 v2).

Along a response, the optimum satisfies for every state  V(s_t) = Σ_{i>=t} (r_i − β ρ_i)  with ρ = log π/π_ref
(Eq. 7). Its residual  δ_t = V(s_t) − Σ_{i>=t} (r_i − β ρ_i)  is squared twice: once with the policy held fixed (the
critic, Eq. 8), once with the value and all later actions held fixed (the policy, Eq. 9).  Separate networks make one
backward over the sum equal to the paper's two updates in turn.

Symbols: beta = β, alpha = α, reward = r (the paper has one terminal R), value = V, logp = log π, ref_logp = log π_ref.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.losses.paths import later_sum, log_ratio, next_state_index, path_residual, per_sequence_mean, suffix_sum
from posttrain.losses.term import Term
from posttrain.schema import TokenValues

KL_DIRECTION = "policy||ref"  # exact over the vocabulary, as the reference code's `unbiased_kl`
SQUARE_FACTOR = 1.0  # residuals are squared without the factor 1/2; with 1/2 alpha would have to be halved
REWARD_MAP = (1.0, 0.0)  # R = 1 * reward + 0: the headline maths runs train on rewards in {0, 1}


def effective_temperature(*, beta: float, alpha: float) -> float:
    """β + α/(2β), nats per reward unit: the temperature that policy and KL terms set together on on-policy data.

    Holds for SQUARE_FACTOR 1 at the stationary point of a bandit: π ∝ π_ref · exp(r / temperature).
    """
    return beta + alpha / (2 * SQUARE_FACTOR * beta)


def oreo_token(v: TokenValues, *, beta: float, alpha: float) -> tuple[Term, ...]:
    """Eqs. 8 and 9 with one action per token: the paper's main form."""
    rho = log_ratio(v.logp, v.ref_logp.detach(), v.is_action)
    moving = rho + later_sum(rho).detach()  # only the current token's log-ratio carries gradient
    return (_critic(v, rho, beta), _policy(v, moving, beta), _kl_to_reference(v, alpha), *_metrics(v, rho, beta))


def oreo_step(v: TokenValues, *, beta: float, alpha: float) -> tuple[Term, ...]:
    """Section 4.2: one action per reasoning step; v.is_state marks the states in which a step begins."""
    rho = log_ratio(v.logp, v.ref_logp.detach(), v.is_action)
    suffix = suffix_sum(rho)
    # Past the last step the suffix is empty, so one column of zeros answers the index T.
    padded = torch.cat((suffix, torch.zeros_like(suffix[..., :1])), dim=-1)
    later = padded.gather(-1, next_state_index(v.is_state))
    moving = (suffix - later) + later.detach()
    return (_critic(v, rho, beta), _policy(v, moving, beta), _kl_to_reference(v, alpha), *_metrics(v, rho, beta))


def residual(v: TokenValues, rho_to_go: Tensor, *, beta: float) -> Tensor:
    """δ_t = V(s_t) − (Σ_{i>=t} r_i − β Σ_{i>=t} ρ_i), [B, T]; 0 everywhere at the soft optimum."""
    return path_residual(v.value, suffix_sum(v.reward) - beta * rho_to_go)


def _critic(v: TokenValues, rho: Tensor, beta: float) -> Term:
    delta = path_residual(v.value, suffix_sum(v.reward) - beta * suffix_sum(rho).detach())
    return Term("value", _mean_square(delta, v.is_state), "sequence")


def _policy(v: TokenValues, moving: Tensor, beta: float) -> Term:
    delta = path_residual(v.value.detach(), suffix_sum(v.reward) - beta * moving)
    return Term("policy", _mean_square(delta, v.is_state), "sequence")


def _mean_square(delta: Tensor, is_state: Tensor) -> Tensor:
    # Selected before the square too: its derivative 2δ would turn a NaN on padding into 0 · NaN in the backward pass.
    return per_sequence_mean(SQUARE_FACTOR * torch.where(is_state, delta, 0.0).square(), is_state)


def _kl_to_reference(v: TokenValues, alpha: float) -> Term:
    return Term("kl_ref", per_sequence_mean(v.kl, v.is_action), "sequence", coef=alpha)


def _metrics(v: TokenValues, rho: Tensor, beta: float) -> tuple[Term, ...]:
    delta = residual(v, suffix_sum(rho), beta=beta).detach()
    return (
        Term("value/mean", per_sequence_mean(v.value.detach(), v.is_state), "sequence", coef=0.0),
        Term("value/bellman_residual", per_sequence_mean(delta.abs(), v.is_state), "sequence", coef=0.0),
        Term("policy/log_ratio", rho.detach().sum(-1), "sequence", coef=0.0),
        Term("policy/entropy", per_sequence_mean(v.entropy, v.is_action), "sequence", coef=0.0),
        Term("reward", v.reward.sum(-1), "sequence", coef=0.0),
    )
