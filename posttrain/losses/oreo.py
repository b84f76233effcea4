"""OREO: policy and value learned together from the soft Bellman equation (arXiv 2412.16145 v2).

Along a response, the optimum satisfies for every state  V(s_t) = Σ_{i>=t} (r_i − β ρ_i)  with ρ = log π/π_ref
(Eq. 7). Its residual  δ_t = V(s_t) − Σ_{i>=t} (r_i − β ρ_i)  is squared twice: once with the policy held fixed (the
critic, Eq. 8), once with the value and all later actions held fixed (the policy, Eq. 9).  Separate networks make one
backward over the sum equal to the paper's two updates in turn.

All forms share the critic and differ in what moves the policy. What carries gradient, term by term:

    "value"   V in every state, through δ; the policy gets none
    "policy"  logp of the action of each state (token, step, response); V gets none
    "kl_ref"  the policy, through the exact KL in every state with an action

A state in which no action is taken (is_state without is_action) is an afterstate: the critic learns there and no
policy term reads it.

Symbols: beta = β, alpha = α, reward = r (the paper has one terminal R), value = V, logp = log π, ref_logp = log π_ref.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.losses.kl import kl_to_reference
from posttrain.losses.paths import (
    at_next_state,
    first_state,
    later_sum,
    log_ratio,
    path_residual,
    per_sequence_mean,
    suffix_sum,
    sum_to_next_state,
)
from posttrain.losses.term import Term
from posttrain.schema import TokenValues

KL_DIRECTION = "policy||ref"  # exact over the vocabulary, as the reference code's `unbiased_kl`
SQUARE_FACTOR = 1.0  # residuals are squared without the factor 1/2; with 1/2 alpha would have to be halved
REWARD_MAP = (1.0, 0.0)  # R = 1 * reward + 0: the headline maths runs train on rewards in {0, 1}


def effective_temperature(*, beta: float, alpha: float) -> float:
    """β + α/(2β), reward units per nat: the temperature that policy and KL terms set together on on-policy data.

    Holds for SQUARE_FACTOR 1 and one policy residual per token. At the stationary point of a bandit
    π ∝ π_ref · exp(r / temperature). Fewer residuals than tokens weaken α: see the metric beta_eff.
    """
    return beta + alpha / (2 * SQUARE_FACTOR * beta)


def oreo_token(v: TokenValues, *, beta: float, alpha: float) -> tuple[Term, ...]:
    """Eqs. 8 and 9 with one action per token: the paper's main form."""
    rho = _log_ratio(v)
    moving = rho + later_sum(rho).detach()  # only the current token's log-ratio carries gradient
    return _joint(v, rho, _policy_residual(v, moving, beta), v.is_state & v.is_action, beta=beta, alpha=alpha)


def oreo_step(v: TokenValues, *, beta: float, alpha: float) -> tuple[Term, ...]:
    """Section 4.2: one action per reasoning step; v.is_state marks the states in which a step begins."""
    rho = _log_ratio(v)
    step = sum_to_next_state(rho, v.is_state)
    moving = step + (suffix_sum(rho) - step).detach()  # the log-ratios of the step itself carry gradient
    return _joint(v, rho, _policy_residual(v, moving, beta), v.is_state & v.is_action, beta=beta, alpha=alpha)


def oreo_response(v: TokenValues, *, beta: float, alpha: float) -> tuple[Term, ...]:
    """Eq. 10: the response is one action. The policy moves by the first state's residual, through all log-ratios.

    The critic keeps Eq. 8 in every state of v.is_state. Between turns of an agent, observations that are random end up
    in the credit of later tokens: on data of another policy this form alone is then biased.
    """
    rho = _log_ratio(v)
    first = first_state(v.is_state & v.is_action)
    return _joint(v, rho, _policy_residual(v, suffix_sum(rho), beta), first, beta=beta, alpha=alpha)


def oreo_one_step(v: TokenValues, *, beta: float, alpha: float) -> tuple[Term, ...]:
    """The policy by Eq. 3 itself:  V(s_t) − (r_t − β ρ_t + V(s_n(t))), n(t) the next state, both values held fixed.

    r and ρ are summed from t up to n(t), so observations between turns are crossed and V is never read in them; past
    the last state V = 0. The critic does not bootstrap: it keeps Eq. 8, whose target is the whole rest of the path.
    Against `oreo_token` the policy gives up the path's noise for the errors of V. Differs from the reference code's
    single-step loss, which takes the neighbouring position for the next state.
    """
    rho = _log_ratio(v)
    value = v.value.detach()
    gain = sum_to_next_state(v.reward, v.is_state) - beta * sum_to_next_state(rho, v.is_state)
    delta = path_residual(value, gain, at_next_state(value, v.is_state))
    return _joint(v, rho, delta, v.is_state & v.is_action, beta=beta, alpha=alpha)


def critic_only(v: TokenValues, *, beta: float) -> tuple[Term, ...]:
    """Eq. 8 alone: V of the policy that is given. The policy gets no gradient, so no temperature is set or logged."""
    rho = _log_ratio(v)
    return (_critic(v, rho, beta), *_metrics(v, rho, beta))


def residual(v: TokenValues, rho_to_go: Tensor, *, beta: float) -> Tensor:
    """δ_t = V(s_t) − (Σ_{i>=t} r_i − β Σ_{i>=t} ρ_i), [B, T]; 0 everywhere at the soft optimum."""
    return path_residual(v.value, suffix_sum(v.reward) - beta * rho_to_go)


def _log_ratio(v: TokenValues) -> Tensor:
    return log_ratio(v.logp, v.ref_logp.detach(), v.is_action)


def _critic(v: TokenValues, rho: Tensor, beta: float) -> Term:
    delta = residual(v, suffix_sum(rho).detach(), beta=beta)
    return Term("value", _mean_square(delta, v.is_state), "sequence")


def _policy_residual(v: TokenValues, moving: Tensor, beta: float) -> Tensor:
    return path_residual(v.value.detach(), suffix_sum(v.reward) - beta * moving)


def _mean_square(delta: Tensor, is_state: Tensor) -> Tensor:
    # Selected before the square too: its derivative 2δ would turn a NaN on padding into 0 · NaN in the backward pass.
    return per_sequence_mean(SQUARE_FACTOR * torch.where(is_state, delta, 0.0).square(), is_state)


def _joint(
    v: TokenValues, rho: Tensor, delta: Tensor, is_taken: Tensor, *, beta: float, alpha: float
) -> tuple[Term, ...]:
    """All terms of a form whose policy is moved by `delta` in the states `is_taken`."""
    return (
        _critic(v, rho, beta),
        Term("policy", _mean_square(delta, is_taken), "sequence"),
        *_exact_kl(v, alpha),
        Term("beta_eff", _row_temperature(v, is_taken, beta, alpha), "sequence", coef=0.0),
        *_metrics(v, rho, beta),
    )


def _exact_kl(v: TokenValues, alpha: float) -> tuple[Term, ...]:
    """With alpha 0 the KL is a metric, which may be missing where the reference gave log-probs alone."""
    return () if v.kl is None and alpha == 0.0 else kl_to_reference(v, alpha=alpha)


def _row_temperature(v: TokenValues, is_taken: Tensor, beta: float, alpha: float) -> Tensor:
    """[B] β + (α/2β) · n_residuals/n_actions, what β and α amount to together.

    The policy term weighs a residual by 1/n_residuals, the KL term a token by 1/n_actions: with one residual for many
    tokens alpha counts for that much less. (The paper raises it from 0.01 to 0.1 for steps and 0.3 for responses.)
    """
    n_actions = v.is_action.sum(-1).clamp(min=1)  # a row without action has no residual either: 0 / 1
    share = is_taken.sum(-1).to(v.logp.dtype) / n_actions
    return beta + (effective_temperature(beta=beta, alpha=alpha) - beta) * share


def _metrics(v: TokenValues, rho: Tensor, beta: float) -> tuple[Term, ...]:
    delta = residual(v, suffix_sum(rho), beta=beta).detach()
    return (
        Term("value/mean", per_sequence_mean(v.value.detach(), v.is_state), "sequence", coef=0.0),
        Term("value/bellman_residual", per_sequence_mean(delta.abs(), v.is_state), "sequence", coef=0.0),
        Term("policy/log_ratio", rho.detach().sum(-1), "sequence", coef=0.0),
        Term("policy/entropy", per_sequence_mean(v.entropy, v.is_action), "sequence", coef=0.0),
        Term("reward", v.reward.sum(-1), "sequence", coef=0.0),
    )
