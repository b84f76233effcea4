"""One OREO training step on padded and on packed rows: forward of three networks, loss, backward, clipping, AdamW.

Both start from the same weights and see the same batch, so losses and gradient norms agree step by step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from benchmarks.measure import Step
from benchmarks.networks import smollm2_proportions
from benchmarks.packing.lengths import typical_batch
from posttrain.data.collate import StateLevel, collate
from posttrain.losses import oreo_token, total
from posttrain.models.actor_critic import ActorCritic, token_values
from posttrain.models.packing import packed_hidden, padded_hidden, use_packed_attention
from posttrain.models.policy import frozen_copy
from posttrain.models.value import ValueHead
from posttrain.schema import EncodedTrajectory, TokenBatch
from posttrain.training.optimizer import (
    AdamWSettings,
    Network,
    TensorGradients,
    build_optimizer,
    clip_scale,
    network_parameters,
)

BETA, ALPHA = 0.03, 0.01  # of the paper's runs
LEARNING_RATE = 1e-6  # steps stay near the start, so that every round does the same work
MAX_GRAD_NORM = 1.0
NETWORKS = tuple(Network(name, LEARNING_RATE, MAX_GRAD_NORM) for name in ("policy", "value"))
ADAMW = AdamWSettings(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """A Llama of SmolLM2's proportions: three query heads to a key head, an MLP of 8/3 widths, tied embeddings."""

    n_vocabulary: int
    width: int  # a multiple of 192
    n_layers: int
    n_rows: int


def oreo_step(case: Case, *, is_packed: bool) -> Step:
    """The step of `posttrain.training`: one backward pass and one optimiser for both networks, each clipped alone."""
    model = make_networks(case, is_packed=is_packed).train()
    batch = make_batch(case)
    optimizer = build_optimizer(model, NETWORKS, ADAMW, decayed=())
    gradients = TensorGradients(network_parameters(model, NETWORKS))

    def step() -> dict[str, float]:
        loss = total(oreo_token(token_values(model, batch), beta=BETA, alpha=ALPHA), {"sequence": case.n_rows})
        loss.backward()
        norms = gradients.norms()
        for network in NETWORKS:
            gradients.scale(network.name, clip_scale(norms[network.name], network.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.item(), **{f"{name}_grad_norm": norm for name, norm in norms.items()}}

    return step


def make_networks(case: Case, *, is_packed: bool) -> ActorCritic:
    """As after some training: reference, policy and value differ, or the first loss would be the mean of R² alone."""
    torch.manual_seed(0)
    config = smollm2_proportions(n_vocabulary=case.n_vocabulary, width=case.width, n_layers=case.n_layers)
    policy = LlamaForCausalLM(config)
    reference = frozen_copy(policy)
    value = LlamaForSequenceClassification(config)
    value.score = ValueHead(0.02 * torch.randn(1, case.width))
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(5e-3 * torch.randn_like(weight))
    if is_packed:
        for network in (policy, value, reference):
            use_packed_attention(network)
    hidden_states = packed_hidden if is_packed else padded_hidden
    return ActorCritic(policy, value, reference, chunk_size=CHUNK, hidden_states=hidden_states)


def make_batch(case: Case) -> TokenBatch:
    return TokenBatch(**collate(make_rows(case), pad_id=0, states=StateLevel.TOKEN))


def make_rows(case: Case) -> list[EncodedTrajectory]:
    """Random ids in the lengths of a typical batch of GSM8K solutions; reward 0 or 1 at the end."""
    rng = random.Random(0)
    rows = []
    for row_id, (n_prompt, n_answer) in enumerate(typical_batch(case.n_rows)):
        length = n_prompt + n_answer
        is_action = (False,) * n_prompt + (True,) * n_answer
        reward = (0.0,) * (length - 1) + (float(rng.random() < 0.5),)
        ids = tuple(rng.randrange(case.n_vocabulary) for _ in range(length))
        rows.append(EncodedTrajectory(row_id, ids, is_action, is_action, reward))
    return rows
