"""Scores of chosen tokens from hidden states and a linear head, a tile of logits at a time, with their own gradient.

With z = W h + b the logits of one position, π = softmax(z), and z', π' the same of a reference:

    log π(a) = z_a − lse(z)            ∂ log π(a) / ∂z = 1[a] − π
    KL(π‖π') = E_π[log π − log π']     ∂ KL / ∂z       = π (log π − log π' − KL)

The forward pass reads the vocabulary in tiles of columns and keeps running sums per position, as flash attention does.
A tile covers all positions, so one pass reads each row of W once and writes each row of its gradient once. What the
backward pass does depends on what is trained:

*   head trained: logits are formed again, tile by tile. ∂/∂W sums over positions, each scaled by gradients that only
    the loss knows, so nothing small enough can be kept. The reference's logits are formed again only if the KL
    received a gradient.
*   head frozen: ∂/∂h of a position is linear in its two incoming gradients. The forward pass keeps the two vectors
    that they scale, [N, D] each, and the backward pass multiplies no matrix.

Axes: N positions, D hidden units, V tokens, C columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Projection:
    """Hidden states and the linear head that turns them into logits."""

    hidden: Tensor  # [N, D]; products are computed in its dtype
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]

    def weight_of(self, tokens: slice | Tensor) -> Tensor:
        return self.weight[tokens].to(self.hidden.dtype)

    def logits(self, columns: slice) -> Tensor:
        """[N, C], rounded to the dtype of the product first, as a call of the head would do."""
        bias = None if self.bias is None else self.bias[columns].to(self.hidden.dtype)
        return _full(F.linear(self.hidden, self.weight_of(columns), bias))

    def logit_of(self, ids: Tensor) -> Tensor:
        """[N], one token per position; not rounded, so only near what `logits` gives."""
        logit = (_full(self.hidden) * _full(self.weight_of(ids))).sum(-1)
        return logit if self.bias is None else logit + _full(self.bias[ids])


class RunningSoftmax:
    """A softmax whose columns arrive in tiles; every sum is relative to the largest logit seen so far."""

    def __init__(self, zeros: Tensor) -> None:
        self.largest = torch.full_like(zeros, -torch.inf)
        self.total = zeros  # Σ exp(z − largest)

    def absorb(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights exp(z − largest) of the tile [N, C], and the factor [N] that earlier sums shrink by."""
        largest = torch.maximum(self.largest, logits.amax(-1))
        decay = (self.largest - largest).exp()
        weights = (logits - largest[:, None]).exp_()
        self.largest, self.total = largest, self.total * decay + weights.sum(-1)
        return weights, decay

    def log_total(self) -> Tensor:
        """lse(z) of the columns so far, [N]."""
        return self.largest + self.total.log()


class HiddenGradients:
    """∂ log π(a) / ∂h and ∂ KL / ∂h where the head is frozen, summed while the tiles pass.

    With the gap u = z − z':

        ∂ log π(a) / ∂h = Σ_{v≠a} π_v (W_a − W_v)      ∂ KL / ∂h = Σ_{v≠a} π_v (u_v − E_π[u]) (W_v − W_a)

    Both leave out a, whose term is 0: where π(a) is near 1 the rest would drown in the rounding of bfloat16 products.
    """

    def __init__(self, chosen_weight: Tensor, zeros: Tensor, *, has_reference: bool) -> None:
        self.chosen_weight = chosen_weight  # [N, D] W_a
        self.mass = self.gap_mass = zeros  # Σ_{v≠a} w_v and Σ_{v≠a} w_v u_v with softmax weights w
        self.pull = torch.zeros_like(chosen_weight)  # the same sums with W_v as a factor
        self.gap_pull = torch.zeros_like(chosen_weight) if has_reference else None

    def absorb(self, others: Tensor, gap: Tensor | None, weight: Tensor, decay: Tensor) -> None:
        """`others` are the softmax weights of a tile, 0 at a; `gap` is u of the tile and is overwritten."""
        self.mass = self.mass * decay + others.sum(-1)
        self.pull.mul_(decay[:, None]).add_(others.to(weight.dtype) @ weight)
        if gap is not None and self.gap_pull is not None:
            gap.mul_(others)
            self.gap_mass = self.gap_mass * decay + gap.sum(-1)
            self.gap_pull.mul_(decay[:, None]).add_(gap.to(weight.dtype) @ weight)

    def finish(self, total: Tensor, mean_gap: Tensor) -> tuple[Tensor, Tensor | None]:
        """∂ log π(a) / ∂h and, with a reference, ∂ KL / ∂h; [N, D] each."""
        by_logp = (self.mass[:, None] * self.chosen_weight - self.pull).div_(total[:, None])
        if self.gap_pull is None:
            return by_logp, None
        by_gap = (self.gap_pull - self.gap_mass[:, None] * self.chosen_weight).div_(total[:, None])
        return by_logp, by_gap.addcmul_(mean_gap[:, None], by_logp)


@dataclass(frozen=True, slots=True)
class Sums:
    """What one pass over the vocabulary leaves of each position, [N] each; the last three only with a reference."""

    logp: Tensor
    entropy: Tensor
    log_total: Tensor  # lse(z)
    ref_logp: Tensor | None = None
    kl: Tensor | None = None
    mean_gap: Tensor | None = None  # E_π[z − z']


def _sum_up(
    policy: Projection,
    reference: Projection | None,
    chosen: Tensor,
    n_columns: int,
    *,
    keeps_gradients: bool,
) -> tuple[Sums, tuple[Tensor, Tensor | None] | None]:
    zeros = torch.zeros(len(chosen), dtype=_full_dtype(policy.hidden), device=chosen.device)
    softmax, ref_softmax = RunningSoftmax(zeros), RunningSoftmax(zeros)
    logit = ref_logit = mean_logit = mean_gap = offset = zeros
    if reference is not None:
        # Gaps count from about the chosen token's, so that a shift between the two heads costs no precision.
        offset = policy.logit_of(chosen) - reference.logit_of(chosen)
    gradients = None
    if keeps_gradients:
        gradients = HiddenGradients(_full(policy.weight_of(chosen)), zeros, has_reference=reference is not None)
    for columns in _tiles(len(policy.weight), n_columns):
        is_inside, column = _locate(chosen, columns)
        z, gap = policy.logits(columns), None
        logit = logit + _pick(z, is_inside, column)
        weights, decay = softmax.absorb(z)
        if reference is not None:
            ref_z = reference.logits(columns)
            ref_logit = ref_logit + _pick(ref_z, is_inside, column)
            ref_softmax.absorb(ref_z)
            gap = torch.sub(z, ref_z, out=ref_z).sub_(offset[:, None])
            mean_gap = mean_gap * decay + (weights * gap).sum(-1)
        mean_logit = mean_logit * decay + z.mul_(weights).sum(-1)
        if gradients is not None:
            others = _add(weights, column, -_pick(weights, is_inside, column))
            gradients.absorb(others, gap, policy.weight_of(columns), decay)
    log_total, mean_gap = softmax.log_total(), mean_gap / softmax.total
    sums = Sums(logit - log_total, log_total - mean_logit / softmax.total, log_total)
    if reference is not None:
        ref_log_total = ref_softmax.log_total()
        kl = mean_gap + offset - (log_total - ref_log_total)
        sums = replace(sums, ref_logp=ref_logit - ref_log_total, kl=kl, mean_gap=mean_gap + offset)
    return sums, None if gradients is None else gradients.finish(softmax.total, mean_gap)


def _form_again(
    policy: Projection,
    reference: Projection | None,
    chosen: Tensor,
    n_columns: int,
    sums: tuple[Tensor, Tensor | None],
    grads: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of hidden, weight and bias from those of logp and KL; `sums` are log_total and mean_gap."""
    (log_total, mean_gap), (logp_grad, kl_grad) = sums, grads
    logp_grad = torch.zeros_like(log_total) if logp_grad is None else logp_grad
    hidden_grad = torch.zeros_like(policy.hidden, dtype=log_total.dtype)
    weight_grad = torch.empty_like(policy.weight)
    bias_grad = None if policy.bias is None else torch.empty_like(policy.bias)
    for columns in _tiles(len(policy.weight), n_columns):
        z = policy.logits(columns)
        if reference is None or mean_gap is None or kl_grad is None:
            z_grad = z.sub_(log_total[:, None]).exp_().mul_(-logp_grad[:, None])
        else:
            slope = (z - reference.logits(columns)).sub_(mean_gap[:, None]).mul_(kl_grad[:, None])
            z_grad = z.sub_(log_total[:, None]).exp_().mul_(slope.sub_(logp_grad[:, None]))
        is_inside, column = _locate(chosen, columns)
        _add(z_grad, column, torch.where(is_inside, logp_grad, 0))
        product = z_grad.to(policy.hidden.dtype)
        hidden_grad += product @ policy.weight_of(columns)
        weight_grad[columns] = product.T @ policy.hidden
        if bias_grad is not None:
            bias_grad[columns] = z_grad.sum(0).to(bias_grad.dtype)
    return hidden_grad.to(policy.hidden.dtype), weight_grad, bias_grad


class TiledScores(torch.autograd.Function):
    """logp, entropy, ref_logp and KL of `chosen`, [N] each; the last two are None without a reference.

    Gradients flow from logp and KL to hidden, weight and bias. Entropy and ref_logp are constants to autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ref_hidden: Tensor | None,
        ref_weight: Tensor | None,
        ref_bias: Tensor | None,
        chosen: Tensor,
        n_columns: int,
    ) -> tuple[Tensor | None, ...]:
        policy, reference = Projection(hidden, weight, bias), _projection(ref_hidden, ref_weight, ref_bias)
        ctx.set_materialize_grads(False)
        ctx.n_columns, ctx.is_head_trained = n_columns, any(ctx.needs_input_grad[1:3])
        is_hidden_alone = ctx.needs_input_grad[0] and not ctx.is_head_trained
        sums, gradients = _sum_up(policy, reference, chosen, n_columns, keeps_gradients=is_hidden_alone)
        if ctx.is_head_trained:
            inputs = (hidden, weight, bias, ref_hidden, ref_weight, ref_bias, chosen)
            ctx.save_for_backward(*inputs, sums.log_total, sums.mean_gap)
        elif gradients is not None:
            ctx.save_for_backward(*(None if x is None else x.to(hidden.dtype) for x in gradients))
        ctx.mark_non_differentiable(*(x for x in (sums.entropy, sums.ref_logp) if x is not None))
        return sums.logp, sums.entropy, sums.ref_logp, sums.kl

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logp_grad: Tensor | None, _entropy: None, _ref_logp: None, kl_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if logp_grad is None and kl_grad is None:
            return (None,) * 8
        if ctx.is_head_trained:
            hidden, weight, bias, ref_hidden, ref_weight, ref_bias, chosen, *sums = ctx.saved_tensors
            policy, reference = Projection(hidden, weight, bias), _projection(ref_hidden, ref_weight, ref_bias)
            grads = _form_again(policy, reference, chosen, ctx.n_columns, sums, (logp_grad, kl_grad))
            return *grads, *(None,) * 5
        pairs = zip((logp_grad, kl_grad), ctx.saved_tensors, strict=True)
        parts = [grad[:, None] * by_hidden for grad, by_hidden in pairs if grad is not None]
        return sum(parts).to(ctx.saved_tensors[0].dtype), *(None,) * 7


def _projection(hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Projection | None:
    return None if hidden is None or weight is None else Projection(hidden, weight, bias)


def _tiles(n_vocabulary: int, n_columns: int) -> Iterator[slice]:
    return (slice(start, min(start + n_columns, n_vocabulary)) for start in range(0, n_vocabulary, n_columns))


def _locate(chosen: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Whether the chosen token of each position lies in the tile [N], and its column there, any one if it does not."""
    is_inside = (chosen >= columns.start) & (chosen < columns.stop)
    return is_inside, (chosen - columns.start).clamp(0, columns.stop - columns.start - 1)


def _pick(tile: Tensor, is_inside: Tensor, column: Tensor) -> Tensor:
    return torch.where(is_inside, tile.gather(-1, column[:, None]).squeeze(-1), 0)


def _add(tile: Tensor, column: Tensor, amount: Tensor) -> Tensor:
    return tile.scatter_add_(-1, column[:, None], amount[:, None])


def _full_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _full(x: Tensor) -> Tensor:
    return x.to(_full_dtype(x))
