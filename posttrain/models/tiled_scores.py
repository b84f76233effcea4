"""Scores of chosen tokens from hidden states and a linear head, a tile of logits at a time, with their own gradient.

With z = W h + b the logits of one position, π = softmax(z), and z', π' the same of a reference:

    log π(a) = z_a − lse(z)            ∂ log π(a) / ∂z = 1[a] − π
    KL(π‖π') = E_π[log π − log π']     ∂ KL(π‖π') / ∂z = π (log π − log π' − KL)
    KL(π'‖π) = E_π'[log π' − log π]    ∂ KL(π'‖π) / ∂z = π − π'

The forward pass reads the vocabulary in tiles of columns and keeps running sums per position, as flash attention does.
A tile covers all positions, so one pass reads each row of W once and writes each row of its gradient once. What the
backward pass does depends on what is trained:

*   head trained: logits are formed again, tile by tile. ∂/∂W sums over positions, each scaled by gradients that only
    the loss knows, so nothing small enough can be kept. The reference's logits are formed again only if a KL received
    a gradient.
*   head frozen: ∂/∂h of a position is linear in its incoming gradients. The forward pass keeps the vectors that they
    scale, [N, D] each, and the backward pass multiplies no matrix.

KL(π'‖π) is computed only where it is asked for.

Axes: N positions, D hidden units, V tokens, C columns of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.models.vocabulary_tiles import (
    Projection,
    RunningPull,
    RunningSoftmax,
    add_at,
    full,
    full_dtype,
    locate,
    pick,
    tiles,
)


class HiddenGradients:
    """∂ log π(a) / ∂h and the ∂ KL / ∂h where the head is frozen, summed while the tiles pass.

    With the gap u = z − z' and pulls P_w = Σ_{v≠a} w_v (W_a − W_v):

        ∂ log π(a) / ∂h = P_π      ∂ KL(π‖π') / ∂h = E_π[u] P_π − P_πu      ∂ KL(π'‖π) / ∂h = P_π' − P_π
    """

    def __init__(self, chosen_weight: Tensor, *, has_reference: bool, has_kl_forward: bool) -> None:
        self.pull = RunningPull(chosen_weight)
        self.gap_pull = RunningPull(chosen_weight) if has_reference else None  # of the weights times u
        self.ref_pull = RunningPull(chosen_weight) if has_kl_forward else None  # of the reference's weights

    def absorb(self, others: Tensor, gap: Tensor | None, weight: Tensor, decay: Tensor) -> None:
        """`others` are the softmax weights of a tile, 0 at a; `gap` is u of the tile and is overwritten."""
        self.pull.absorb(others, weight, decay)
        if gap is not None and self.gap_pull is not None:
            self.gap_pull.absorb(gap.mul_(others), weight, decay)

    def finish(self, total: Tensor, beside: ReferenceSums | None) -> tuple[Tensor | None, ...]:
        """∂ log π(a) / ∂h and, where they were summed, ∂ KL(π‖π') / ∂h and ∂ KL(π'‖π) / ∂h; [N, D] each."""
        by_logp = self.pull.mean(total)
        by_kl = by_kl_forward = None
        if beside is not None and self.gap_pull is not None:
            by_kl = self.gap_pull.mean(total).neg_().addcmul_((beside.gap / total)[:, None], by_logp)
        if beside is not None and self.ref_pull is not None:
            by_kl_forward = self.ref_pull.mean(beside.softmax.total).sub_(by_logp)
        return by_logp, by_kl, by_kl_forward


@dataclass(frozen=True, slots=True)
class Sums:
    """What one pass over the vocabulary leaves of each position, [N] each; the others None without a reference."""

    logp: Tensor
    entropy: Tensor
    log_total: Tensor  # lse(z)
    total: Tensor  # the denominator of the running softmax
    ref_logp: Tensor | None = None
    ref_log_total: Tensor | None = None  # lse(z')
    kl: Tensor | None = None
    mean_gap: Tensor | None = None  # E_π[z − z']
    kl_forward: Tensor | None = None  # None also where it was not asked for


class ReferenceSums:
    """The reference's share of a pass: its softmax, and the mean gap u = z − z' under the policy's and its own."""

    def __init__(self, reference: Projection, offset: Tensor, *, has_kl_forward: bool) -> None:
        self.reference = reference
        self.offset = offset  # gaps count from about the chosen token's: a shift between heads costs no precision
        self.has_kl_forward = has_kl_forward
        zeros = torch.zeros_like(offset)
        self.softmax = RunningSoftmax(zeros)
        self.logit = self.gap = self.ref_gap = zeros  # z'_a, Σ w u and Σ w' u

    def absorb(
        self, z: Tensor, columns: slice, at: tuple[Tensor, Tensor], weights: Tensor, decay: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take up a tile with logits z; returns u [N, C], the reference's weights [N, C] and their decay [N]."""
        ref_z = self.reference.logits(columns)
        self.logit = self.logit + pick(ref_z, *at)
        ref_weights, ref_decay = self.softmax.absorb(ref_z)
        gap = torch.sub(z, ref_z, out=ref_z).sub_(self.offset[:, None])
        self.gap = self.gap * decay + (weights * gap).sum(-1)
        if self.has_kl_forward:
            self.ref_gap = self.ref_gap * ref_decay + (ref_weights * gap).sum(-1)
        return gap, ref_weights, ref_decay

    def complete(self, alone: Sums) -> Sums:
        """The policy's sums `alone`, with those beside the reference added."""
        ref_log_total = self.softmax.log_total()
        log_ratio = alone.log_total - ref_log_total
        mean_gap = self.gap / alone.total + self.offset
        kl_forward = log_ratio - (self.ref_gap / self.softmax.total + self.offset) if self.has_kl_forward else None
        return replace(
            alone,
            ref_logp=self.logit - ref_log_total,
            ref_log_total=ref_log_total,
            kl=mean_gap - log_ratio,
            mean_gap=mean_gap,
            kl_forward=kl_forward,
        )


def _sum_up(
    policy: Projection,
    chosen: Tensor,
    n_columns: int,
    *,
    beside: ReferenceSums | None,
    gradients: HiddenGradients | None,
) -> Sums:
    """One pass over the vocabulary; `beside` and `gradients` take up each tile too."""
    zeros = torch.zeros(len(chosen), dtype=full_dtype(policy.hidden), device=chosen.device)
    softmax, logit, mean_logit = RunningSoftmax(zeros), zeros, zeros
    for columns in tiles(len(policy.weight), n_columns):
        at = locate(chosen, columns)
        z, gap = policy.logits(columns), None
        logit = logit + pick(z, *at)
        weights, decay = softmax.absorb(z)
        if beside is not None:
            gap, ref_weights, ref_decay = beside.absorb(z, columns, at, weights, decay)
            if gradients is not None and gradients.ref_pull is not None:
                gradients.ref_pull.absorb(_without(at, ref_weights), policy.weight_of(columns), ref_decay)
        mean_logit = mean_logit * decay + z.mul_(weights).sum(-1)
        if gradients is not None:
            gradients.absorb(_without(at, weights), gap, policy.weight_of(columns), decay)
    log_total = softmax.log_total()
    alone = Sums(logit - log_total, log_total - mean_logit / softmax.total, log_total, softmax.total)
    return alone if beside is None else beside.complete(alone)


def _form_again(
    policy: Projection,
    reference: Projection | None,
    chosen: Tensor,
    n_columns: int,
    sums: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of hidden, weight and bias from those of logp, KL(π‖π') and KL(π'‖π).

    `sums` are lse(z), E_π[z − z'] and lse(z').
    """
    logp_grad, kl_grad, kl_forward_grad = grads
    if logp_grad is None:
        logp_grad = torch.zeros(len(chosen), dtype=full_dtype(policy.hidden), device=chosen.device)
    beside = None if kl_grad is None and kl_forward_grad is None else reference
    hidden_grad = torch.zeros_like(policy.hidden, dtype=logp_grad.dtype)
    weight_grad = torch.empty_like(policy.weight)
    bias_grad = None if policy.bias is None else torch.empty_like(policy.bias)
    for columns in tiles(len(policy.weight), n_columns):
        ref_z = None if beside is None else beside.logits(columns)
        z_grad = _logit_grad(policy.logits(columns), ref_z, sums, logp_grad, (kl_grad, kl_forward_grad))
        is_inside, column = locate(chosen, columns)
        add_at(z_grad, column, torch.where(is_inside, logp_grad, 0))
        product = z_grad.to(policy.hidden.dtype)
        hidden_grad += product @ policy.weight_of(columns)
        weight_grad[columns] = product.T @ policy.hidden
        if bias_grad is not None:
            bias_grad[columns] = z_grad.sum(0).to(bias_grad.dtype)
    return hidden_grad.to(policy.hidden.dtype), weight_grad, bias_grad


def _logit_grad(
    z: Tensor,
    ref_z: Tensor | None,
    sums: Sequence[Tensor | None],
    logp_grad: Tensor,
    kl_grads: Sequence[Tensor | None],
) -> Tensor:
    """∂loss/∂z of a tile [N, C], without what the chosen token has more than the others; z and z' are overwritten."""
    log_total, mean_gap, ref_log_total = (None if x is None else x[:, None] for x in sums)
    kl_grad, kl_forward_grad = (None if x is None else x[:, None] for x in kl_grads)
    slope = -logp_grad[:, None]
    if ref_z is not None and kl_grad is not None:
        slope = (z - ref_z).sub_(mean_gap).mul_(kl_grad).sub_(logp_grad[:, None])
    p = z.sub_(log_total).exp_()
    if ref_z is None or kl_forward_grad is None:
        return p.mul_(slope)
    # The difference is taken before anything is rounded: near the reference it is far smaller than its two sides.
    excess = torch.sub(p, ref_z.sub_(ref_log_total).exp_(), out=ref_z).mul_(kl_forward_grad)
    return p.mul_(slope).add_(excess)


class TiledScores(torch.autograd.Function):
    """logp, entropy, ref_logp, KL(π‖π') and KL(π'‖π) of `chosen`, [N] each.

    The last three are None without a reference, the last one also where it was not asked for. Gradients flow from logp
    and both KLs to hidden, weight and bias. Entropy and ref_logp are constants to autograd.
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
        has_kl_forward: bool = False,
    ) -> tuple[Tensor | None, ...]:
        policy, reference = Projection(hidden, weight, bias), _projection(ref_hidden, ref_weight, ref_bias)
        beside = gradients = None
        if reference is not None:
            offset = policy.logit_of(chosen) - reference.logit_of(chosen)
            beside = ReferenceSums(reference, offset, has_kl_forward=has_kl_forward)
        ctx.set_materialize_grads(False)
        ctx.n_columns, ctx.is_head_trained = n_columns, any(ctx.needs_input_grad[1:3])
        if ctx.needs_input_grad[0] and not ctx.is_head_trained:
            chosen_weight = full(policy.weight_of(chosen))
            gradients = HiddenGradients(chosen_weight, has_reference=beside is not None, has_kl_forward=has_kl_forward)
        sums = _sum_up(policy, chosen, n_columns, beside=beside, gradients=gradients)
        if ctx.is_head_trained:
            inputs = (hidden, weight, bias, ref_hidden, ref_weight, ref_bias, chosen)
            ref_log_total = sums.ref_log_total if has_kl_forward else None
            ctx.save_for_backward(*inputs, sums.log_total, sums.mean_gap, ref_log_total)
        elif gradients is not None:
            kept = gradients.finish(sums.total, beside)
            ctx.save_for_backward(*(None if x is None else x.to(hidden.dtype) for x in kept))
        ctx.mark_non_differentiable(*(x for x in (sums.entropy, sums.ref_logp) if x is not None))
        return sums.logp, sums.entropy, sums.ref_logp, sums.kl, sums.kl_forward

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        logp_grad: Tensor | None,
        _entropy: None,
        _ref_logp: None,
        kl_grad: Tensor | None,
        kl_forward_grad: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        incoming = (logp_grad, kl_grad, kl_forward_grad)
        if all(grad is None for grad in incoming):
            return (None,) * 9
        if ctx.is_head_trained:
            hidden, weight, bias, ref_hidden, ref_weight, ref_bias, chosen, *sums = ctx.saved_tensors
            policy, reference = Projection(hidden, weight, bias), _projection(ref_hidden, ref_weight, ref_bias)
            return *_form_again(policy, reference, chosen, ctx.n_columns, sums, incoming), *(None,) * 6
        pairs = zip(incoming, ctx.saved_tensors, strict=True)
        parts = [grad[:, None] * by_hidden for grad, by_hidden in pairs if grad is not None]
        return sum(parts).to(ctx.saved_tensors[0].dtype), *(None,) * 8


def _projection(hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Projection | None:
    return None if hidden is None or weight is None else Projection(hidden, weight, bias)


def _without(at: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    """The weights of a tile with that of the chosen token set to 0, in place."""
    return add_at(weights, at[1], -pick(weights, *at))
