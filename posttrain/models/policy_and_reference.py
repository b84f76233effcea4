"""A trained policy beside its frozen reference: the networks of a policy gradient, which has no value model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.actor_critic import at_actions, require_right_padding, require_same_vocabulary
from posttrain.models.logprobs import score_tokens
from posttrain.models.packing import padded_hidden


class PolicyAndReference(nn.Module):
    """Everything runs inside `forward`, which returns a dict of tensors, for the reasons that ActorCritic gives."""

    def __init__(self, policy: PreTrainedModel, reference: PreTrainedModel, *, chunk_size: int) -> None:
        super().__init__()
        require_same_vocabulary(policy, reference, "reference", "it must be the model that the policy started from")
        self.policy = policy
        self.reference = reference.requires_grad_(False).eval()
        self.chunk_size = chunk_size
        self.config = policy.config  # engines and Trainer look for it here

    def train(self, mode: bool = True) -> PolicyAndReference:
        super().train(mode)
        self.reference.eval()
        return self

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute the policy's activations in the backward pass; Trainer calls this with settings of its version."""
        self.policy.gradient_checkpointing_enable(**settings)

    def forward(self, input_ids: Tensor, is_token: Tensor, is_action: Tensor) -> dict[str, Tensor]:
        """[B, L] tokens and [B, T] actions in; logp, ref_logp, kl and entropy out, each [B, T], 0 off the actions.

        Raises ValueError when a row is padded on the left or in the middle.
        """
        require_right_padding(is_token)
        states = (input_ids[:, :-1], is_token[:, :-1])  # no action follows the last token
        hidden = padded_hidden(self.policy, *states)[is_action]
        with torch.no_grad():
            ref_hidden = padded_hidden(self.reference, *states)[is_action]
        scored = score_tokens(
            hidden,
            self.policy.get_output_embeddings(),
            ref_hidden,
            self.reference.get_output_embeddings(),
            input_ids[:, 1:][is_action],
            chunk_size=self.chunk_size,
        )
        names = ("logp", "ref_logp", "kl", "entropy")
        return {name: at_actions(getattr(scored, name), is_action) for name in names}
