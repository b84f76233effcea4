"""Slow plain loops written from the papers' equations, in NumPy; they share nothing with posttrain.losses.

Index: position t is the state "tokens up to t"; logp[b, t] is the log-probability of the action taken there.
Masked entries are never read, so whatever stands there cannot matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Rows:
    """What the equations speak of, [B, T] each."""

    logp: Array
    ref_logp: Array
    value: Array
    reward: Array
    is_action: Array
    is_state: Array


@dataclass(frozen=True)
class OreoLosses:
    """Per-row losses [B] and, by hand, the derivatives of their sum over rows [B, T]."""

    value_loss: Array  # (1/n_b) Σ_t (V − gain)²
    policy_loss: Array
    value_grad: Array  # d Σ value_loss / d V[b, t]
    policy_grad: Array  # d Σ policy_loss / d logp[b, t]


def suffix_gain(rows: Rows, b: int, t: int, *, beta: float) -> float:
    """arXiv 2412.16145 v2, Eq. 7 with rewards on every action: Σ_{i>=t} (r_i − β log(π/π_ref)(a_i|s_i))."""
    gain = 0.0
    for i in range(t, rows.logp.shape[1]):
        gain += rows.reward[b, i]
        if rows.is_action[b, i]:
            gain -= beta * (rows.logp[b, i] - rows.ref_logp[b, i])
    return gain


def states_of(rows: Rows, b: int) -> list[int]:
    return [t for t in range(rows.is_state.shape[1]) if rows.is_state[b, t]]


def residual(rows: Rows, b: int, t: int, *, beta: float) -> float:
    return rows.value[b, t] - suffix_gain(rows, b, t, beta=beta)


def decisions_of(rows: Rows, b: int) -> list[int]:
    """States in which an action is taken; the others are afterstates."""
    return [t for t in states_of(rows, b) if rows.is_action[b, t]]


def oreo_token(rows: Rows, *, beta: float) -> OreoLosses:
    """Eqs. 8 and 9. dδ_t/dlogp_t = β; later tokens and V are constants for the policy."""
    moved = {b: {t: [t] for t in decisions_of(rows, b)} for b in range(len(rows.logp))}
    return _oreo(rows, beta, moved, suffix_residuals(rows, beta=beta))


def oreo_step(rows: Rows, *, beta: float) -> OreoLosses:
    """Section 4.2: the action at a state is every policy token up to the next state."""
    return _oreo(rows, beta, _actions_up_to_next_state(rows), suffix_residuals(rows, beta=beta))


def oreo_response(rows: Rows, *, beta: float) -> OreoLosses:
    """Eq. 10: one residual, of the first state, with every later token of the policy as its action."""
    n_positions = rows.logp.shape[1]
    firsts = {b: decisions_of(rows, b)[:1] for b in range(len(rows.logp))}
    moved = {b: {t: list(range(t, n_positions)) for t in first} for b, first in firsts.items()}
    return _oreo(rows, beta, moved, suffix_residuals(rows, beta=beta))


def oreo_one_step(rows: Rows, *, beta: float) -> OreoLosses:
    """Eq. 8 for the value; for the policy Eq. 3 between neighbouring states, both values constant."""
    return _oreo(rows, beta, _actions_up_to_next_state(rows), one_step_residuals(rows, beta=beta))


def suffix_residuals(rows: Rows, *, beta: float) -> Array:
    out = np.zeros(rows.logp.shape)
    for b in range(len(rows.logp)):
        for t in states_of(rows, b):
            out[b, t] = residual(rows, b, t, beta=beta)
    return out


def _actions_up_to_next_state(rows: Rows) -> dict[int, dict[int, list[int]]]:
    actions: dict[int, dict[int, list[int]]] = {}
    for b in range(len(rows.logp)):
        bounds = [*states_of(rows, b), rows.logp.shape[1]]
        stretches = {start: list(range(start, end)) for start, end in pairwise(bounds)}
        actions[b] = {start: stretch for start, stretch in stretches.items() if rows.is_action[b, start]}
    return actions


def _oreo(rows: Rows, beta: float, moved: dict[int, dict[int, list[int]]], policy_residuals: Array) -> OreoLosses:
    """moved[b][t]: the positions that the policy's residual in state t moves; states not named move nothing."""
    n_rows, shape = len(rows.logp), rows.logp.shape
    value_loss, policy_loss, value_grad, policy_grad = (
        np.zeros(n_rows),
        np.zeros(n_rows),
        np.zeros(shape),
        np.zeros(shape),
    )
    for b in range(n_rows):
        states = states_of(rows, b)
        for t in states:
            delta = residual(rows, b, t, beta=beta)
            value_loss[b] += delta**2 / len(states)
            value_grad[b, t] += 2 * delta / len(states)
        for t, actions in moved[b].items():
            delta = policy_residuals[b, t]
            policy_loss[b] += delta**2 / len(moved[b])
            for i in actions:
                if rows.is_action[b, i]:
                    policy_grad[b, i] += 2 * beta * delta / len(moved[b])
    return OreoLosses(value_loss, policy_loss, value_grad, policy_grad)


def cumulative_policy_grad(rows: Rows, *, beta: float) -> Array:
    """Gradient of the policy loss without the stop-gradient on later tokens: token i gets 2β Σ_{t<=i} δ_t / n_b."""
    grad = np.zeros(rows.logp.shape)
    for b in range(len(rows.logp)):
        states = states_of(rows, b)
        for i in range(rows.logp.shape[1]):
            if rows.is_action[b, i]:
                grad[b, i] = sum(2 * beta * residual(rows, b, t, beta=beta) / len(states) for t in states if t <= i)
    return grad


def one_step_residuals(rows: Rows, *, beta: float) -> Array:
    """V(s_t) − (gain up to the next state + V(next state)), V = 0 past the last one; 0 where there is no state."""
    out = np.zeros(rows.logp.shape)
    for b in range(len(rows.logp)):
        bounds = [*states_of(rows, b), rows.logp.shape[1]]
        for t, following in pairwise(bounds):
            gain = suffix_gain(rows, b, t, beta=beta) - suffix_gain(rows, b, following, beta=beta)
            end = rows.value[b, following] if following < rows.logp.shape[1] else 0.0
            out[b, t] = rows.value[b, t] - (gain + end)
    return out


def row_mean(x: Array, mask: Array) -> Array:
    """Mean over the masked-in entries of each row, 0 for a row without any."""
    means = []
    for values, is_in in zip(x, mask, strict=True):
        kept = [value for value, keep in zip(values, is_in, strict=True) if keep]
        means.append(sum(kept) / len(kept) if kept else 0.0)
    return np.array(means)


def log_softmax(logits: Array) -> Array:
    """Of one vector."""
    top = max(logits)
    normaliser = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return np.array([logit - normaliser for logit in logits])


def exact_kl(log_pi: Array, log_ref: Array) -> float:
    """KL(π || π_ref) = Σ_a π(a) (log π(a) − log π_ref(a)), nats."""
    return sum(math.exp(p) * (p - q) for p, q in zip(log_pi, log_ref, strict=True))


def kl_logit_grad(log_pi: Array, log_ref: Array) -> Array:
    """d KL / d logits = π (log(π/π_ref) − KL)."""
    kl = exact_kl(log_pi, log_ref)
    return np.array([math.exp(p) * (p - q - kl) for p, q in zip(log_pi, log_ref, strict=True)])


def implicit_returns(rows: Rows, *, beta: float) -> Array:
    """h = β Σ_t log(π/π_ref)(a_t|s_t) per row."""
    out = []
    for b in range(len(rows.logp)):
        actions = [t for t in range(rows.logp.shape[1]) if rows.is_action[b, t]]
        out.append(beta * sum(rows.logp[b, t] - rows.ref_logp[b, t] for t in actions))
    return np.array(out)


def dpo(chosen: Rows, rejected: Rows, *, beta: float) -> Array:
    """arXiv 2404.12358 v2, Eq. 9, per pair: −log σ(h_w − h_l)."""
    margins = implicit_returns(chosen, beta=beta) - implicit_returns(rejected, beta=beta)
    return np.array([math.log1p(math.exp(-margin)) for margin in margins])


def trajectory_balance(log_z: float, log_pf: Array, log_pb: Array, log_reward: float) -> float:
    """arXiv 2201.13259, trajectory balance of one path: (log Z + Σ log P_F − log R(x) − Σ log P_B)²."""
    forward = log_z + sum(log_pf)
    backward = log_reward + sum(log_pb)
    return (forward - backward) ** 2
