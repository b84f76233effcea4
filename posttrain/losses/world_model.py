"""Losses of learned world models over binary observations (arXiv 2211.02222, model of the world as in DreamerV2).

Observations are vectors of bits, so each bit has a logit and the log-likelihood is a sum over bits. The reward is a
Gaussian with deviation 1, hence half a square. The continuation is the chance that the episode does not end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from posttrain.losses.term import Term

PRIOR_SHARE = 0.8  # of the KL's gradient goes to the prior, the rest to the posterior


@dataclass(frozen=True, slots=True)
class OutcomeValues:
    """What a model says of N transitions' rewards and ends, and what they were. All fields are [N]."""

    reward_mean: Tensor
    continue_logit: Tensor  # of the chance that the episode goes on
    reward: Tensor
    is_terminal: Tensor  # bool


@dataclass(frozen=True, slots=True)
class SimpleModelValues:
    """A model that predicts the bits of the next observation, each on its own."""

    next_logit: Tensor  # [N, n_bits]
    next_observation: Tensor  # [N, n_bits] 0 or 1
    outcome: OutcomeValues


@dataclass(frozen=True, slots=True)
class LatentModelValues:
    """A model whose state is n_groups categorical variables of n_classes each."""

    posterior_logit: Tensor  # [N, n_groups, n_classes] q(φ' | o')
    prior_logit: Tensor  # [N, n_groups, n_classes] p(φ' | φ, a)
    decoded_logit: Tensor  # [N, n_bits] of o, from a sample of q(φ | o)
    observation: Tensor  # [N, n_bits] 0 or 1
    outcome: OutcomeValues


def simple_model(v: SimpleModelValues) -> tuple[Term, ...]:
    """−log p(o' | o, a) − log p(r | o, a) − log p(goes on | o, a), constants left out.

    A terminal transition has no next observation, so its bits teach nothing.
    """
    return (
        Term("observation", _of_going_on(_bits_loss(v.next_logit, v.next_observation), v.outcome), "transition"),
        *_outcome(v.outcome),
    )


def categorical_latent_model(v: LatentModelValues) -> tuple[Term, ...]:
    """0.8 · KL(sg q' ‖ p) + 0.2 · KL(q' ‖ sg p) − log p(o | φ) − log p(r | φ, a) − log p(goes on | φ, a).

    The two halves of the KL have its value and split its gradient: the prior learns faster than the posterior gives
    way. On terminal transitions both the KL and the decoder are left out.
    """
    q, p = v.posterior_logit, v.prior_logit
    return (
        Term("kl_prior", _of_going_on(categorical_kl(q.detach(), p), v.outcome), "transition", PRIOR_SHARE),
        Term("kl_posterior", _of_going_on(categorical_kl(q, p.detach()), v.outcome), "transition", 1 - PRIOR_SHARE),
        Term("observation", _of_going_on(_bits_loss(v.decoded_logit, v.observation), v.outcome), "transition"),
        *_outcome(v.outcome),
    )


def categorical_kl(q_logit: Tensor, p_logit: Tensor) -> Tensor:
    """[N] Σ_groups KL(q ‖ p) of categorical variables with logits [N, n_groups, n_classes], nats."""
    log_q, log_p = q_logit.log_softmax(-1), p_logit.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum((-2, -1))


def straight_through(one_hot: Tensor, logit: Tensor) -> Tensor:
    """The one-hot sample going forward, the softmax of its logits going backward."""
    probability = logit.softmax(-1)
    return one_hot + (probability - probability.detach())  # the bracket is exactly 0


def _bits_loss(logit: Tensor, bits: Tensor) -> Tensor:
    if logit.shape != bits.shape:
        raise ValueError(f"logits of bits are {tuple(logit.shape)}, the bits {tuple(bits.shape)}: needed one per bit")
    return cross_entropy(logit, bits, reduction="none").sum(-1)


def _of_going_on(loss: Tensor, outcome: OutcomeValues) -> Tensor:
    return torch.where(outcome.is_terminal, 0.0, loss)


def _outcome(v: OutcomeValues) -> tuple[Term, ...]:
    goes_on = (~v.is_terminal).to(v.continue_logit.dtype)
    return (
        Term("reward", 0.5 * (v.reward - v.reward_mean).square(), "transition"),
        Term("continuation", cross_entropy(v.continue_logit, goes_on, reduction="none"), "transition"),
    )
