"""One OREO step in the manner of the paper's reference code (arXiv 2412.16145 v2), written anew from its description.

Policy and value model are trained by two engines, each with its own optimiser, one after the other:

    log π of the actions, without gradient     the critic's target
    V                                          of the value model, with gradient
    log π_ref of every token [B, T, V]         of the reference
    critic loss (Eq. 8), backward, step
    log π of every token [B, T, V]             of the policy once more, with gradient
    policy loss (Eq. 9) with the V from before the critic's step, exact KL, backward, step

Everything is padded and dense, and float32. Against the reference code: rows are padded on the right, and the last
position, whose logits nothing reads, is not computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.measure import Step
from benchmarks.packing.steps import (
    ADAMW,
    ALPHA,
    BETA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    Case,
    make_batch,
    make_networks,
)
from posttrain.schema import TokenBatch


class Engine:
    """A network with an optimiser of its own."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.parameters = list(network.train().parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=LEARNING_RATE,
            betas=ADAMW.betas,
            eps=ADAMW.eps,
            weight_decay=ADAMW.weight_decay,
        )

    def step(self, loss: Tensor) -> float:
        """Backward, clipping and AdamW; the norm of the gradient before it was clipped."""
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.item()


def reference_step(case: Case) -> Step:
    networks = make_networks(case, is_packed=False)
    policy, value, reference = networks.policy, networks.value, networks.reference
    policy_engine, value_engine = Engine(policy), Engine(value)
    batch = make_batch(case)
    outcome = batch.reward.sum(-1, keepdim=True)

    def step() -> dict[str, float]:
        with torch.no_grad():
            old_logp = of_actions(all_logp(policy, batch), batch)
        values = state_values(value, batch)
        with torch.no_grad():
            all_ref_logp = all_logp(reference, batch)
        ref_logp = of_actions(all_ref_logp, batch)

        residual = values - outcome + BETA * from_here_on(old_logp - ref_logp, batch)
        critic_loss = mean_of_means(residual.square(), batch)
        value_grad_norm = value_engine.step(critic_loss)

        every_logp = all_logp(policy, batch)
        kl = F.kl_div(all_ref_logp, every_logp, reduction="none", log_target=True).sum(-1)
        rho = of_actions(every_logp, batch) - ref_logp
        later = from_here_on(rho, batch) - rho
        residual = values.detach() - outcome + BETA * (rho + later.detach())
        policy_loss = mean_of_means(residual.square(), batch) + ALPHA * mean_of_means(kl, batch)
        policy_grad_norm = policy_engine.step(policy_loss)
        return {
            "loss": (critic_loss + policy_loss).item(),
            "policy_grad_norm": policy_grad_norm,
            "value_grad_norm": value_grad_norm,
        }

    return step


def all_logp(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """[B, T, V] log-probability of every token in every state."""
    return F.log_softmax(model(**states(batch)).logits.float(), dim=-1)


def state_values(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """[B, T]"""
    return model.score(model.model(**states(batch)).last_hidden_state).squeeze(-1)


def states(batch: TokenBatch) -> dict[str, Tensor | bool]:
    return {
        "input_ids": batch.input_ids[:, :-1],
        "attention_mask": batch.is_token[:, :-1].long(),
        "use_cache": False,
    }


def of_actions(logp: Tensor, batch: TokenBatch) -> Tensor:
    """[B, T] of the tokens that were chosen, 0 where the policy chose none."""
    chosen = logp.gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    return chosen.masked_fill(~batch.is_action, 0.0)


def from_here_on(x: Tensor, batch: TokenBatch) -> Tensor:
    """[B, T] Σ_{k >= t} x_k over actions."""
    return x.masked_fill(~batch.is_action, 0.0).flip(-1).cumsum(-1).flip(-1)


def mean_of_means(x: Tensor, batch: TokenBatch) -> Tensor:
    """Over rows, of each row's mean over its actions."""
    return (x.masked_fill(~batch.is_action, 0.0).sum(-1) / batch.is_action.sum(-1)).mean()
