"""Preference losses: potentials on the difference of the path residuals of two answers to one prompt.

An answer's residual from the prompt s_0 is  δ(y) = V(s_0) − (R(y) − h(y))  with h = β Σ_t log π/π_ref
(arXiv 2404.12358 v2, Eq. 8). V(s_0) is the same for both answers, so it cancels from  δ_w − δ_l  and

    margin = h_w − h_l = (R_w − R_l) + (δ_w − δ_l)

is the difference in reward that the policy implies, and the log-odds of the Bradley-Terry model (Eq. 1). The rewards
themselves are not known: labels stand in for their difference.

All of them move the policy through every logp of both answers, and nothing else. h is a sum over tokens, never a mean.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.losses.paths import log_ratio, path_residual
from posttrain.losses.term import Term
from posttrain.schema import PairValues, PathScores


def dpo(v: PairValues, *, beta: float) -> tuple[Term, ...]:
    """−log σ(margin)  (arXiv 2305.18290, Eq. 7; 2404.12358, Eq. 9). log 2 at the reference."""
    return (Term("preference", -F.logsigmoid(_margin(v, beta)), "pair"), *_metrics(v, beta))


def dpo_smoothed(v: PairValues, *, beta: float, label_smoothing: float) -> tuple[Term, ...]:
    """−(1 − ε) log σ(margin) − ε log σ(−margin)  with ε = label_smoothing: cDPO, for labels wrong with probability ε.

    Its minimum lies at margin = log((1 − ε)/ε), where `dpo` has none. (E. Mitchell, "A note on DPO with noisy
    preferences", 2023.)
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, needs 0 <= e < 0.5: at 0.5 the labels say nothing")
    margin = _margin(v, beta)
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return (Term("preference", loss, "pair"), *_metrics(v, beta))


def ipo(v: PairValues, *, beta: float) -> tuple[Term, ...]:
    """(margin/β − 1/(2β))²  with β = τ of arXiv 2310.12036, Eq. 17: the minimum is a margin of 1/2.

    Log-ratios are sums over the answer, as printed there; trl divides each by the answer's length.
    """
    loss = (_margin(v, beta) / beta - 1 / (2 * beta)).square()
    return (Term("preference", loss, "pair"), *_metrics(v, beta))


def without_reference(v: PairValues) -> PairValues:
    """The same pairs with π_ref constant over all answers, so that h = β log π(y): longer answers get smaller h."""
    return PairValues(_without_reference(v.chosen), _without_reference(v.rejected))


def implicit_return(scores: PathScores, *, beta: float) -> Tensor:
    """[P] h = β Σ_t log π/π_ref over the actions of each row, which is R(y) − V(s_0) at the optimum."""
    return beta * log_ratio(scores.logp, scores.ref_logp.detach(), scores.is_action).sum(-1)


def _margin(v: PairValues, beta: float) -> Tensor:
    if len(v.chosen.logp) != len(v.rejected.logp):
        raise ValueError(
            f"{len(v.chosen.logp)} chosen rows, {len(v.rejected.logp)} rejected: needed one of each per pair, in order"
        )
    # 0 stands for V(s_0), which cancels, and for the rewards, which the labels replace.
    chosen, rejected = (path_residual(torch.zeros_like(h), -h) for h in _returns(v, beta))
    return chosen - rejected


def _returns(v: PairValues, beta: float) -> tuple[Tensor, Tensor]:
    return implicit_return(v.chosen, beta=beta), implicit_return(v.rejected, beta=beta)


def _without_reference(scores: PathScores) -> PathScores:
    return replace(scores, ref_logp=torch.zeros_like(scores.ref_logp))


def _metrics(v: PairValues, beta: float) -> tuple[Term, ...]:
    chosen, rejected = (h.detach() for h in _returns(v, beta))
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),  # 0 at the reference, where all pairs tie
        "logps/chosen": _sequence_logp(v.chosen),
        "logps/rejected": _sequence_logp(v.rejected),
    }
    return tuple(Term(name, value, "pair", coef=0.0) for name, value in metrics.items())


def _sequence_logp(scores: PathScores) -> Tensor:
    return torch.where(scores.is_action, scores.logp.detach(), 0.0).sum(-1)
