"""Policy, value and reference in one module, under one engine, with one optimiser of two parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.logprobs import score_chosen, score_tokens
from posttrain.models.packing import HiddenStates, padded_hidden
from posttrain.models.value import values_at_every_position
from posttrain.schema import PathScores, TokenBatch, TokenValues


class ActorCritic(nn.Module):
    """Three separate networks (the paper's form): a trained policy, a trained value model, a frozen reference.

    Everything runs inside `forward`, because DDP, DeepSpeed and FSDP2 hook a module's forward and nothing else.
    It returns a dict of tensors, the one container that all of those engines look into.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        value: PreTrainedModel,
        reference: PreTrainedModel,
        *,
        chunk_size: int,
        hidden_states: HiddenStates = padded_hidden,
    ) -> None:
        super().__init__()
        require_same_vocabulary(policy, reference, "reference", "it must be the model that the policy started from")
        require_same_vocabulary(policy, value, "value model", "both read the same token ids")
        self.policy = policy
        self.value = value
        self.reference = reference.requires_grad_(False).eval()
        self.chunk_size = chunk_size
        self.hidden_states = hidden_states
        self.config = policy.config  # engines and Trainer look for it here
        # FSDP2 shards these layers one by one; without the names it would gather all three networks at once.
        self._no_split_modules = sorted({*(policy._no_split_modules or ()), *(value._no_split_modules or ())})

    def train(self, mode: bool = True) -> ActorCritic:
        super().train(mode)
        self.reference.eval()
        return self

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute activations of policy and value in the backward pass; the reference keeps none.

        Trainer calls this; which settings it passes differs between versions of transformers, so all of them go on.
        """
        self.policy.gradient_checkpointing_enable(**settings)
        self.value.gradient_checkpointing_enable(**settings)

    def forward(self, input_ids: Tensor, is_token: Tensor, is_action: Tensor) -> dict[str, Tensor]:
        """Tokens and masks of a TokenBatch in; logp, ref_logp, kl, entropy, value out, each [B, T] float32.

        Raises ValueError when a row is padded on the left or in the middle.
        """
        _require_right_padding(is_token)
        hidden = self.hidden_states(self.policy, input_ids, is_token)
        with torch.no_grad():
            ref_hidden = self.hidden_states(self.reference, input_ids, is_token)
        scored = score_tokens(
            hidden[:, :-1][is_action],
            self.policy.get_output_embeddings(),
            ref_hidden[:, :-1][is_action],
            self.reference.get_output_embeddings(),
            input_ids[:, 1:][is_action],
            chunk_size=self.chunk_size,
        )
        value = values_at_every_position(self.value, input_ids, is_token, hidden_states=self.hidden_states)[:, :-1]
        return {
            "logp": _scatter(scored.logp, is_action),
            "ref_logp": _scatter(scored.ref_logp, is_action),
            "kl": _scatter(scored.kl, is_action),
            "entropy": _scatter(scored.entropy, is_action),
            "value": value,
        }


def token_values(model: nn.Module, batch: TokenBatch) -> TokenValues:
    """The `forward` of the OREO trainer: networks and batch in, what an objective sees out."""
    scored = model(input_ids=batch.input_ids, is_token=batch.is_token, is_action=batch.is_action)
    return TokenValues(**scored, reward=batch.reward, is_action=batch.is_action, is_state=batch.is_state)


@torch.no_grad()
def path_scores(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    batch: TokenBatch,
    *,
    chunk_size: int,
    hidden_states: HiddenStates = padded_hidden,
) -> PathScores:
    """What two networks say about paths, for a reader: no value, no gradient. 0 where nothing was chosen.

    Raises ValueError for networks of different vocabularies and for rows that are not padded on the right.
    """
    require_same_vocabulary(policy, reference, "reference", "it must be the model that the policy started from")
    _require_right_padding(batch.is_token)
    logp, ref_logp = (
        score_chosen(
            hidden_states(model, batch.input_ids, batch.is_token)[:, :-1][batch.is_action],
            model.get_output_embeddings(),
            batch.input_ids[:, 1:][batch.is_action],
            chunk_size=chunk_size,
        ).logp
        for model in (policy, reference)
    )
    return PathScores(_scatter(logp, batch.is_action), _scatter(ref_logp, batch.is_action), batch.is_action)


def require_same_vocabulary(policy: PreTrainedModel, other: PreTrainedModel, name: str, reason: str) -> None:
    """Raises ValueError when `other`, called `name`, has another number of tokens than the policy."""
    n_policy, n_other = (model.config.get_text_config().vocab_size for model in (policy, other))
    if n_policy != n_other:
        raise ValueError(f"policy has {n_policy} tokens, {name} {n_other}: {reason}")


def _require_right_padding(is_token: Tensor) -> None:
    resumes = is_token[:, 1:] & ~is_token[:, :-1]
    if resumes.any():
        rows = resumes.any(-1).nonzero().squeeze(-1).tolist()
        raise ValueError(
            f"rows {rows} of the batch have padding before a token; needed right-padded rows (a TokenBatch is): "
            "was the tokenizer's padding_side 'left'?"
        )


def _scatter(scored: Tensor, is_action: Tensor) -> Tensor:
    """[N] back to [B, T], 0 where nothing was chosen; out of place, so the gradient flows."""
    return torch.zeros(is_action.shape, dtype=scored.dtype, device=scored.device).masked_scatter(is_action, scored)
