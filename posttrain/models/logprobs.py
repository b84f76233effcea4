"""Log-probability of the chosen token, entropy and exact KL to a reference, without ever holding [T, V]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """One entry per scored position N, all float32 and in nats."""

    logp: Tensor  # [N] log π of the chosen token
    ref_logp: Tensor  # [N] log π_ref of the chosen token
    kl: Tensor  # [N] Σ_a π(a) (log π(a) − log π_ref(a)), exact over the vocabulary
    entropy: Tensor  # [N] entropy of π


def score_tokens(
    hidden: Tensor,
    head: nn.Module,
    ref_hidden: Tensor,
    ref_head: nn.Module,
    chosen: Tensor,
    *,
    chunk_size: int,
) -> TokenLogProbs:
    """Score `chosen` [N] under policy and reference from their final hidden states [N, D].

    Logits exist for `chunk_size` positions at a time and are recomputed in the backward pass, so memory does not grow
    with N times the vocabulary. Reductions run in float32 (float64 stays float64).
    """
    chunks = [
        checkpoint(_score_chunk, h, head, ref_h, ref_head, ids, use_reentrant=False, preserve_rng_state=False)
        for h, ref_h, ids in zip(
            hidden.split(chunk_size), ref_hidden.split(chunk_size), chosen.split(chunk_size), strict=True
        )
    ]
    logp, ref_logp, kl, entropy = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return TokenLogProbs(logp, ref_logp, kl, entropy)


def _score_chunk(
    hidden: Tensor, head: nn.Module, ref_hidden: Tensor, ref_head: nn.Module, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_pi = _log_softmax(head(hidden))
    with torch.no_grad():
        log_ref = _log_softmax(ref_head(ref_hidden))
    pi = log_pi.exp()
    logp = log_pi.gather(-1, chosen[:, None]).squeeze(-1)
    ref_logp = log_ref.gather(-1, chosen[:, None]).squeeze(-1)
    kl = (pi * (log_pi - log_ref)).sum(-1)
    entropy = -(pi.detach() * log_pi.detach()).sum(-1)
    return logp, ref_logp, kl, entropy


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
