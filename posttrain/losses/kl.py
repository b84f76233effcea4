"""KL divergence between policy and reference: exact terms, and estimators from the sampled tokens.

With x drawn from p and  l = log p(x) − log q(x),  three estimators of KL(p‖q) = E_p[l]:

    k1 = l               unbiased, either sign
    k2 = l²/2            biased (by third order in l), >= 0
    k3 = e^(−l) − 1 + l  unbiased, >= 0; heavy-tailed where q >> p

The sampling distribution decides what is estimated. With ρ = log π/π_ref of the token:

    tokens from the policy     KL(π‖π_ref), "reverse":  l = ρ
    tokens from the reference  KL(π_ref‖π), "forward":  l = −ρ
    any other tokens, such as an offline data set: neither, without bound

As a loss it is the gradient that counts, and it need not be that of the number. Expected over the samples:

    tokens from the policy     k1: 0.  k2: ∇KL(π‖π_ref).  k3: ∇KL(π_ref‖π), the other direction
    tokens from the reference  k1: ∇KL(π_ref‖π).  k2: neither.  k3: ∇KL(π_ref‖π)

Names k1 to k3 after J. Schulman, "Approximating KL Divergence" (2020).
"""

from __future__ import annotations

from torch import Tensor

from posttrain.losses.paths import per_sequence_mean
from posttrain.losses.term import Term
from posttrain.schema import TokenValues


def kl_k1(log_ratio: Tensor) -> Tensor:
    """l, nats, for x ~ p and log_ratio = log p(x)/q(x): unbiased for KL(p‖q)."""
    return log_ratio


def kl_k2(log_ratio: Tensor) -> Tensor:
    """l²/2, nats, for x ~ p: biased for KL(p‖q), yet its gradient is unbiased where p is the one that learns."""
    return log_ratio.square() / 2


def kl_k3(log_ratio: Tensor) -> Tensor:
    """e^(−l) − 1 + l, nats, for x ~ p: unbiased for KL(p‖q) and never negative."""
    return (-log_ratio).expm1() + log_ratio


def kl_to_reference(v: TokenValues, *, alpha: float) -> tuple[Term, ...]:
    """α · KL(π‖π_ref), exact over the vocabulary, each sequence the mean over its actions. Moves the policy.

    Raises ValueError when v.kl is None: the forward knew only the reference's log-probs of the chosen tokens.
    """
    if v.kl is None:
        raise ValueError(
            f"kl is None and its weight alpha {alpha}, needs exact KL(pi || pi_ref) [B, T]: stored log-probs of the "
            "reference cannot give it; store its hidden states, run it, or set alpha to 0"
        )
    return (Term("kl_ref", per_sequence_mean(v.kl, v.is_action), "sequence", coef=alpha),)


def kl_from_reference(v: TokenValues, *, alpha: float) -> tuple[Term, ...]:
    """α · KL(π_ref‖π), exact over the vocabulary, each sequence the mean over its actions. Moves the policy.

    Add it to an objective whose own alpha is 0. Raises ValueError when the forward did not fill v.kl_forward.
    """
    if v.kl_forward is None:
        raise ValueError("kl_forward is None, needs exact KL(pi_ref || pi) [B, T]: have the forward compute it too")
    return (Term("kl_forward", per_sequence_mean(v.kl_forward, v.is_action), "sequence", coef=alpha),)
