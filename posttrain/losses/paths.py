"""Sums along a path of states, and the residual that every objective of the library is a potential on."""

from __future__ import annotations

import torch
from torch import Tensor


def path_residual(start: Tensor, gain: Tensor, end: Tensor | float = 0.0) -> Tensor:
    """How far a path is from consistent: start − (gain along it + end)."""
    return start - (gain + end)


def suffix_sum(x: Tensor) -> Tensor:
    """y[..., t] = Σ_{k >= t} x[..., k] along the last axis, in x's dtype or float32 if that is coarser.

    bfloat16 would err by 1e-2 on a sum of 1,500 terms.
    """
    x = x if x.dtype == torch.float64 else x.float()
    return x.flip(-1).cumsum(-1).flip(-1)


def later_sum(x: Tensor) -> Tensor:
    """y[..., t] = Σ_{k > t} x[..., k]; exactly 0 at the last position."""
    suffix = suffix_sum(x)
    return torch.cat((suffix[..., 1:], torch.zeros_like(suffix[..., :1])), dim=-1)


def log_ratio(logp: Tensor, ref_logp: Tensor, is_action: Tensor) -> Tensor:
    """ρ_t = log π(a_t|s_t) − log π_ref(a_t|s_t), exactly 0 where the policy did not choose the token."""
    if logp.shape != ref_logp.shape:
        raise ValueError(
            f"ref_logp is {tuple(ref_logp.shape)}, logp is {tuple(logp.shape)}: "
            "was the reference scored before the shift?"
        )
    return torch.where(is_action, logp - ref_logp, 0.0)


def next_state_index(is_state: Tensor) -> Tensor:
    """[B, T] int64: the first t' > t with is_state[b, t'], or T when there is none."""
    n_positions = is_state.shape[-1]
    position = torch.arange(n_positions, device=is_state.device).expand_as(is_state)
    candidate = torch.where(is_state, position, n_positions)
    first_from_here = candidate.flip(-1).cummin(-1).values.flip(-1)
    none = torch.full_like(first_from_here[..., :1], n_positions)
    return torch.cat((first_from_here[..., 1:], none), dim=-1)


def at_next_state(x: Tensor, is_state: Tensor) -> Tensor:
    """[B, T] x at the next state after t, and 0 when there is none: past the last state the path has ended."""
    padded = torch.cat((x, torch.zeros_like(x[..., :1])), dim=-1)
    return padded.gather(-1, next_state_index(is_state))


def sum_to_next_state(x: Tensor, is_state: Tensor) -> Tensor:
    """[B, T] Σ_{t <= i < n(t)} x_i in a state t with next state n(t); it carries nothing from outside that stretch.

    Summed apart for each stretch, since the difference of two suffix sums would keep the rounding of both.
    """
    stretch = is_state.long().cumsum(-1)  # 0 before the first state, then 1, 2, ...
    bins = torch.zeros((*x.shape[:-1], x.shape[-1] + 1), dtype=x.dtype, device=x.device)
    return bins.scatter_add(-1, stretch, x).gather(-1, stretch)


def first_state(is_state: Tensor) -> Tensor:
    """[B, T] bool, True only at the first state of each row."""
    return is_state & (is_state.long().cumsum(-1) == 1)


def afterstates(is_action: Tensor, is_token: Tensor) -> Tensor:
    """[B, T] bool, the states between the last token of an agent's turn and the first token of its observation.

    `is_action` [B, T] is indexed by state, `is_token` [B, L] by token. A turn that ends the row has no such state: the
    index past its last token exists only in rows that are padded, and a loss must not depend on padding.
    """
    ended = torch.cat((torch.zeros_like(is_action[..., :1]), is_action[..., :-1]), dim=-1)
    return ended & ~is_action & is_token[..., 1:]


def per_sequence_mean(x: Tensor, mask: Tensor) -> Tensor:
    """x / n_b where masked in, 0 elsewhere, with n_b = mask[b].sum(): its sum over a row is the row's mean.

    A row without a single masked-in item contributes 0; the data layer refuses such rows before training.
    """
    n_items = mask.sum(-1, keepdim=True).clamp(min=1)  # an empty row has no item, so the divisor 1 is never used
    return torch.where(mask, x / n_items, 0.0)
