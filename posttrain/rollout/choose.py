"""Choosing the next token, with one uniform number per row and step.

Inverse transform sampling: the token is the first whose cumulative probability exceeds u. One number per token is all
the randomness there is, so a row's choices do not depend on which rows are beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from posttrain.sampling import SamplingParams, TopTokens


def uniform_stream(seed: int, stream: int, sample: int, n_steps: int) -> NDArray[np.float64]:
    """The numbers in [0, 1) of one continuation, [n_steps].

    Philox is counter-based: the seed is its key, and (stream, sample) set the high words of its 256-bit counter, so
    streams never overlap and each is made without drawing from any other. A longer stream begins with the shorter one.
    """
    counter = np.array([0, 0, stream, sample], dtype=np.uint64)  # a bare list above 2^63 would pass through float64
    return np.random.Generator(np.random.Philox(key=seed, counter=counter)).random(n_steps)


def choose_tokens(logits: Tensor, uniform: Tensor, params: SamplingParams) -> Tensor:
    """One token per row of logits [B, V], [B] int64.

    Temperature 0 takes the largest logit, the lowest token id on a tie, and does not read `uniform` [B]. Otherwise
    the probabilities are those at `temperature`, cut to the `top_k` likeliest tokens, re-normalised, then cut to the
    fewest likeliest tokens whose mass reaches `top_p`; of equally likely tokens the lower id goes first.
    """
    if params.temperature == 0:
        return logits.argmax(-1)
    if params.top_k == 0 and params.top_p == 1:
        p = torch.softmax(logits.float() / params.temperature, dim=-1)
        return _invert(p.cumsum(-1, dtype=torch.float64), uniform)
    ordered, token_ids = (logits.float() / params.temperature).sort(dim=-1, descending=True, stable=True)
    if params.top_k:
        ordered = ordered[:, : params.top_k]
    p = torch.softmax(ordered, dim=-1).double()
    cumulative = p.cumsum(-1)
    # A token stays while the mass before it is short of top_p, so the one that reaches it stays too. Those that go
    # form a tail: flattening the cumulative sum there takes their mass away.
    kept_mass = torch.where(cumulative - p < params.top_p, cumulative, 0.0).amax(-1, keepdim=True)
    rank = _invert(torch.minimum(cumulative, kept_mass), uniform)
    return token_ids.gather(-1, rank[:, None]).squeeze(-1)


def _invert(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """First index whose cumulative mass [B, V] exceeds u times the whole; never one without mass of its own."""
    whole = cumulative[:, -1:]
    # u < 1, but u * whole may round up to `whole`, which nothing exceeds.
    target = torch.minimum(uniform[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def top_of(logits: Tensor, n: int) -> list[TopTokens]:
    """The n likeliest tokens of each row of logits [B, V] with their log π as of `logp_of`; all V if n is more."""
    logits = logits.float()
    largest, token_ids = logits.topk(min(n, logits.shape[-1]), dim=-1)
    logp = largest - logits.logsumexp(-1, keepdim=True)
    return [tuple(zip(*row, strict=True)) for row in zip(token_ids.tolist(), logp.tolist(), strict=True)]


def logp_of(logits: Tensor, token_ids: Tensor) -> Tensor:
    """log π(token) at temperature 1 over the whole vocabulary, [B] float32."""
    logits = logits.float()
    return logits.gather(-1, token_ids[:, None]).squeeze(-1) - logits.logsumexp(-1)
