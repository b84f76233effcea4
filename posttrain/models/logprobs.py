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
    n_chunks: int = 0,
) -> TokenLogProbs:
    """Score `chosen` [N] under policy and reference from their final hidden states [N, D].

    Logits exist for `chunk_size` positions at a time and are recomputed in the backward pass, so memory does not grow
    with N times the vocabulary. Reductions run in float32 (float64 stays float64).

    The heads are called at least `n_chunks` times, with no position if none is left: engines that gather weights in a
    collective (ZeRO-3) need the same number of calls on every rank.
    """
    n_empty = max(0, n_chunks - -(-len(chosen) // chunk_size))
    chunks = [
        checkpoint(_score_chunk, h, head, ref_h, ref_head, ids, use_reentrant=False, preserve_rng_state=False)
        for h, ref_h, ids in zip(
            *(_chunks(x, chunk_size, n_empty=n_empty) for x in (hidden, ref_hidden, chosen)), strict=True
        )
    ]
    logp, ref_logp, kl, entropy = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return TokenLogProbs(logp, ref_logp, kl, entropy)


def _chunks(x: Tensor, chunk_size: int, *, n_empty: int) -> tuple[Tensor, ...]:
    return (*x.split(chunk_size), *(x[:0] for _ in range(n_empty)))


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
