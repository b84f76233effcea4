"""The networks of an OREO run, as its config says: which there are, what of them is trained, and what they share."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from posttrain.models.actor_critic import ActorCritic
from posttrain.models.lora import add_lora, add_lora_to_policy
from posttrain.models.packing import packed_hidden, padded_hidden, use_packed_attention
from posttrain.models.policy import load_policy
from posttrain.models.quantized import four_bits
from posttrain.models.reference import ReferenceFrom
from posttrain.models.roles import HeadOnTrunk, Roles, share_frozen_weights
from posttrain.models.value import load_value_model, value_model_from_policy
from posttrain.training.oreo_config import OreoConfig
from posttrain.training.reference_cache import ReferenceCache


def load_networks(config: OreoConfig, cache: ReferenceCache | None = None) -> ActorCritic:
    """Policy, value model and reference in the dtype of the config.

    What of the reference is loaded is for `reference_from` to say; cached hidden states come with their head.
    Raises ValueError for networks that `padding_free` cannot pack.
    """
    policy = _load_policy(config)
    value = _load_value(config, policy)
    reference = None
    if config.reference_from is ReferenceFrom.LIVE:
        reference = load_policy(config.reference or config.model, dtype=getattr(torch, config.dtype))
    elif config.reference_from is ReferenceFrom.CACHED_HIDDEN and cache is not None:
        reference = cache.read_head()
    if config.padding_free:
        for network in (policy, value, reference):
            if isinstance(network, PreTrainedModel):
                use_packed_attention(network)
    return ActorCritic(
        policy=policy,
        value=value,
        reference=reference,
        chunk_size=config.log_prob_chunk_size,
        reference_from=config.reference_from,
        has_kl_forward=config.alpha_forward > 0,
        hidden_states=packed_hidden if config.padding_free else padded_hidden,
    )


def _load_policy(config: OreoConfig) -> PreTrainedModel:
    dtype = getattr(torch, config.dtype)
    policy = load_policy(config.model, dtype=dtype, quantization=four_bits(dtype) if config.load_in_4bit else None)
    rank = config.policy_lora_rank
    if rank > 0:
        alpha = rank if config.policy_lora_alpha is None else config.policy_lora_alpha
        add_lora_to_policy(policy, rank=rank, alpha=alpha, seed=config.seed)
    return policy


def _load_value(config: OreoConfig, policy: PreTrainedModel) -> PreTrainedModel | HeadOnTrunk:
    if config.roles is Roles.SHARED_TRUNK:
        return HeadOnTrunk(policy, gradient_scale=config.value_gradient_scale)
    dtype = getattr(torch, config.dtype)
    rank = config.value_lora_rank
    if config.value_model is None:
        quantization = four_bits(dtype) if config.load_in_4bit and rank > 0 else None
        value = value_model_from_policy(config.model, dtype=dtype, quantization=quantization)
    else:
        value = load_value_model(config.value_model, dtype=dtype)
    if rank > 0:
        alpha = rank if config.value_lora_alpha is None else config.value_lora_alpha
        add_lora(value, rank=rank, alpha=alpha, seed=config.seed)
    if config.roles is Roles.TWO_ADAPTERS:
        share_frozen_weights(policy, value)
    return value
