"""A cosine vector quantiser whose codebook is a moving average (EMA) of the vectors that chose each code.

Axes: B images, K token positions, C codes, D code dimensions. `forward` changes nothing. Only `update`, which the
training step calls, moves the codebook: so encoding data cannot drift it, whatever mode the module is in. One process:
the statistics are those of the vectors at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARPNESS = 10.0  # inverse temperature of the soft assignment
FRESH_SHARE = 0.2  # of the batch's soft assignment in a position's histogram; the rest is the moving average
FULL_BELOW, NONE_ABOVE = 0.1, 0.3  # perplexity / C between which the entropy term fades out


@dataclass(frozen=True, slots=True)
class Quantised:
    codes: Tensor  # [B, K, D] unit rows; the gradient passes straight through to z
    ids: Tensor  # [B, K] int64, index order
    commit: Tensor  # scalar, MSE of z to its code; gradient to z only
    diversity: Tensor  # scalar, nats, minus a weighted entropy of code use


class CosineQuantiser(nn.Module):
    codebook: Tensor  # [C, D] unit rows
    counts: Tensor  # [C] EMA of how many vectors of a batch chose the code
    sums: Tensor  # [C, D] EMA of the sum of these vectors
    histogram: Tensor  # [K, C] EMA of the share of images that chose the code at the position

    def __init__(self, n_positions: int, n_codes: int, code_dim: int, *, decay: float, reset_ratio: float) -> None:
        """decay: of the EMA. reset_ratio: a code with fewer than this share of the mean count is dead."""
        super().__init__()
        self.decay, self.reset_ratio = decay, reset_ratio
        self.register_buffer("codebook", F.normalize(torch.randn(n_codes, code_dim), dim=-1))
        self.register_buffer("counts", torch.ones(n_codes))
        self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("histogram", torch.full((n_positions, n_codes), 1 / n_codes))

    def forward(self, z: Tensor) -> Quantised:
        """z [B, K, D] unit rows."""
        codebook = self.codebook.clone()  # an update before the backward must not reach the graph
        cosine = z @ codebook.T
        ids = cosine.argmax(-1)
        chosen = F.embedding(ids, codebook)
        return Quantised(
            codes=z + (chosen - z).detach(),
            ids=ids,
            commit=F.mse_loss(z, chosen.detach()),
            diversity=self._diversity(cosine),
        )

    def nearest(self, z: Tensor) -> Tensor:
        """[B, K] ids of the codes nearest to z [B, K, D]."""
        return (z @ self.codebook.T).argmax(-1)

    def lookup(self, ids: Tensor) -> Tensor:
        """[..., D] the codes of ids [...]; raises ValueError on an id that is no code."""
        n_codes = len(self.codebook)
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= n_codes):
            raise ValueError(
                f"visual ids run from {int(ids.min())} to {int(ids.max())}, the codebook has 0 to {n_codes - 1}: "
                "are they of this tokenizer, and was the vocabulary's offset taken off?"
            )
        return F.embedding(ids, self.codebook)

    def _diversity(self, cosine: Tensor) -> Tensor:
        """−c/2 (mean_k H(p_k) + H(mean_k p_k)): each position, and all of them together, should use many codes.

        p_k = 0.8 (EMA histogram of position k) + 0.2 (batch mean of softmax(10 z·C)). The weight c is 1/2 while
        the mean perplexity of a position is under C / 10 and falls to 0 at 3 C / 10. Selftok averages over groups of
        adjacent positions; with few positions there is one group.
        """
        soft = (SHARPNESS * cosine).softmax(-1).mean(0)
        p = (1 - FRESH_SHARE) * self.histogram.clone() + FRESH_SHARE * soft
        used = entropy(self.histogram).exp().mean() / len(self.codebook)
        weight = 0.5 * ((NONE_ABOVE - used) / (NONE_ABOVE - FULL_BELOW)).clamp(0, 1)
        return -weight * 0.5 * (entropy(p).mean() + entropy(p.mean(0)))

    @torch.no_grad()
    def update(self, z: Tensor, ids: Tensor, generator: torch.Generator) -> int:
        """Move the codebook towards the vectors z [B, K, D] that chose ids [B, K]; returns how many codes were dead.

        N <- d N + (1 − d) n,  S <- d S + (1 − d) sum of z,  code = S / |S|. A code with N below `reset_ratio` times
        the mean count of a batch is dead. It becomes a vector of the batch, drawn with more weight at positions that
        use few codes ("smart reactivation").
        """
        vectors, flat = z.detach().flatten(0, 1), ids.flatten()
        n_codes = len(self.codebook)
        n = torch.bincount(flat, minlength=n_codes).to(self.counts.dtype)
        self.counts.lerp_(n, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, flat, vectors), 1 - self.decay)
        self.histogram.lerp_(F.one_hot(ids, n_codes).to(self.histogram.dtype).mean(0), 1 - self.decay)
        is_dead = self.counts < self.reset_ratio * len(flat) / n_codes
        n_dead = int(is_dead.sum())
        if n_dead:
            weight = 1 / entropy(self.histogram).exp()
            by_position = (SHARPNESS * weight / weight.max()).softmax(0)
            drawn = by_position.repeat(len(z)).cpu()  # generators of this package are the CPU's, on any device
            chosen = torch.multinomial(drawn, n_dead, replacement=True, generator=generator).to(z.device)
            start = self.reset_ratio * len(flat) / n_codes
            self.counts[is_dead] = start
            self.sums[is_dead] = start * vectors[chosen]
        self.codebook.copy_(F.normalize(self.sums, dim=-1))
        return n_dead

    @torch.no_grad()
    def start_from(self, z: Tensor, generator: torch.Generator, *, n_rounds: int = 10) -> None:
        """Set the codebook by spherical k-means of z [N, K, D], started from vectors drawn at random."""
        vectors, n_codes = z.flatten(0, 1), len(self.codebook)
        order = torch.randperm(len(vectors), generator=generator).to(z.device)
        self.codebook.copy_(vectors[order[torch.arange(n_codes, device=z.device) % len(order)]])
        for _ in range(n_rounds):
            ids = self.nearest(vectors)
            sums = torch.zeros_like(self.codebook).index_add_(0, ids, vectors)
            is_used = torch.bincount(ids, minlength=n_codes) > 0
            self.codebook[is_used] = F.normalize(sums[is_used], dim=-1)
        ids = self.nearest(z)
        self.histogram.copy_(F.one_hot(ids, n_codes).to(self.histogram.dtype).mean(0))
        self.counts.fill_(z.shape[1])
        self.sums.copy_(self.codebook * z.shape[1])


def entropy(p: Tensor) -> Tensor:
    """[...] nats, of distributions p [..., C]; 0 log 0 = 0."""
    return torch.special.entr(p).sum(-1)
