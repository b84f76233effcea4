"""Ways to score chosen tokens: all logits at once, checkpointed chunks of positions, trl's tiles and the library's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trl.kernels import ChunkedLogProbFunction

from posttrain.models.logprobs import score_chosen, score_tokens

CHUNK = 128  # positions whose logits exist at a time, for `checkpointed` and `tiled`
TRL_CHUNK = 32_768  # columns of a tile: what trl's trainers pass


@dataclass(frozen=True, slots=True)
class Case:
    n_vocabulary: int
    width: int
    n_positions: int
    is_head_trained: bool
    has_kl: bool  # log-prob and exact KL to a reference (OREO), or the log-prob alone (DPO)


@dataclass(frozen=True, slots=True)
class Inputs:
    hidden: Tensor  # [N, D] with gradient
    head: nn.Linear
    ref_hidden: Tensor  # [N, D]
    ref_head: nn.Linear
    chosen: Tensor  # [N]
    weight: Tensor  # [N] by which the loss weighs positions


def make_inputs(case: Case) -> Inputs:
    """Random float32 inputs; logits have a standard deviation of about 1.5 and the reference lies near the policy."""
    torch.manual_seed(0)
    n, width = case.n_positions, case.width
    heads = [nn.Linear(width, case.n_vocabulary, bias=False) for _ in range(2)]
    with torch.no_grad():
        heads[0].weight.normal_(0, 1.5 / width**0.5)
        heads[1].weight.copy_(heads[0].weight)
    heads[0].requires_grad_(case.is_head_trained)
    heads[1].requires_grad_(False)
    hidden = torch.randn(n, width)
    ref_hidden = hidden + 0.1 * torch.randn(n, width)
    chosen = torch.randint(case.n_vocabulary, (n,))
    return Inputs(hidden.requires_grad_(True), heads[0], ref_hidden, heads[1], chosen, torch.randn(n) / n)


def dense(x: Inputs, *, has_kl: bool) -> tuple[Tensor, ...]:
    logp = torch.log_softmax(x.head(x.hidden), -1)
    if not has_kl:
        return (_gather(logp, x.chosen),)
    with torch.no_grad():
        ref_logp = torch.log_softmax(x.ref_head(x.ref_hidden), -1)
    return _gather(logp, x.chosen), (logp.exp() * (logp - ref_logp)).sum(-1)


def checkpointed(x: Inputs, *, has_kl: bool) -> tuple[Tensor, ...]:
    """What the library did before: the dense computation on chunks of positions, repeated in the backward pass."""

    def score(hidden: Tensor, ref_hidden: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        return dense(Inputs(hidden, x.head, ref_hidden, x.ref_head, chosen, x.weight), has_kl=has_kl)

    chunks = zip(*(y.split(CHUNK) for y in (x.hidden, x.ref_hidden, x.chosen)), strict=True)
    parts = [checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def tiled(x: Inputs, *, has_kl: bool) -> tuple[Tensor, ...]:
    """posttrain.models.logprobs as the trainers call it; it computes the entropy too."""
    if not has_kl:
        return (score_chosen(x.hidden, x.head, x.chosen, chunk_size=CHUNK).logp,)
    scored = score_tokens(x.hidden, x.head, x.ref_hidden, x.ref_head, x.chosen, chunk_size=CHUNK)
    return scored.logp, scored.kl


def trl_tiled(x: Inputs, *, has_kl: bool) -> tuple[Tensor, ...]:
    """The function that trl's DPO trainer scores with, asked for the entropy too; it has no KL."""
    assert not has_kl
    wanted = ("log_probs", "entropy")
    logp, *_ = ChunkedLogProbFunction.apply(x.hidden, x.head.weight, None, x.chosen, 1.0, TRL_CHUNK, None, 1.0, wanted)
    return (logp,)


METHODS = {"dense": dense, "checkpointed": checkpointed, "trl_tiled": trl_tiled, "tiled": tiled}


def methods_of(case: Case) -> list[str]:
    return [name for name in METHODS if name != "trl_tiled" or not case.has_kl]


def step(method: str, x: Inputs, *, has_kl: bool) -> dict[str, float]:
    """Forward and backward of Σ w logp + 0.1 mean KL; the loss and the norm of all its gradients."""
    for leaf in (x.hidden, x.head.weight):
        leaf.grad = None
    logp, *kl = METHODS[method](x, has_kl=has_kl)
    loss = (x.weight * logp).sum() + sum(0.1 * each.mean() for each in kl)
    loss.backward()
    grads = [leaf.grad for leaf in (x.hidden, x.head.weight) if leaf.grad is not None]
    return {"loss": loss.item(), "grad_norm": torch.nn.utils.get_total_norm(grads).item()}


def _gather(logp: Tensor, chosen: Tensor) -> Tensor:
    return logp.gather(-1, chosen[:, None]).squeeze(-1)
