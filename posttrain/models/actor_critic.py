"""Policy, value and reference in one module, under one engine, with one optimiser of two parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.logprobs import score_chosen, score_tokens
from posttrain.models.packing import HiddenStates, padded_hidden
from posttrain.models.reference import ReferenceFrom, adapters_off, require_adapters
from posttrain.models.roles import HeadOnTrunk
from posttrain.models.value import values_at_every_position
from posttrain.schema import PathScores, TokenBatch, TokenValues


class ActorCritic(nn.Module):
    """A trained policy, a trained value model and a reference; by default three networks apart, the paper's form.

    Everything runs inside `forward`, because DDP, DeepSpeed and FSDP2 hook a module's forward and nothing else.
    It returns a dict of tensors, the one container that all of those engines look into.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        value: PreTrainedModel | HeadOnTrunk,
        reference: PreTrainedModel | nn.Linear | None,
        *,
        chunk_size: int,
        reference_from: ReferenceFrom = ReferenceFrom.LIVE,
        has_kl_forward: bool = False,
        hidden_states: HiddenStates = padded_hidden,
    ) -> None:
        """`reference` is a network if live, the output head for cached hidden states, and otherwise None.

        With `has_kl_forward` the exact KL(reference || policy) is computed too, for `kl_from_reference`.
        """
        super().__init__()
        if isinstance(value, PreTrainedModel):
            require_same_vocabulary(policy, value, "value model", "both read the same token ids")
        _check_reference(policy, reference, reference_from)
        self.policy = policy
        self.value = value
        self.reference = None if reference is None else reference.requires_grad_(False).eval()
        self.reference_from = reference_from
        self.chunk_size = chunk_size
        self.hidden_states = hidden_states
        self.has_kl_forward = has_kl_forward
        self.config = policy.config  # engines and Trainer look for it here
        # FSDP2 shards these layers one by one; without the names it would gather all three networks at once.
        trained = [network for network in (policy, value) if isinstance(network, PreTrainedModel)]
        self._no_split_modules = sorted({name for network in trained for name in network._no_split_modules or ()})

    def train(self, mode: bool = True) -> ActorCritic:
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Recompute activations of policy and value in the backward pass; the reference keeps none.

        Trainer calls this; which settings it passes differs between versions of transformers, so all of them go on.
        """
        self.policy.gradient_checkpointing_enable(**settings)
        if isinstance(self.value, PreTrainedModel):
            self.value.gradient_checkpointing_enable(**settings)

    def forward(
        self, input_ids: Tensor, is_token: Tensor, is_action: Tensor, ref_hidden: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Fields of a TokenBatch in; logp, ref_logp, kl, entropy, value (and kl_forward) out, each [B, T] float32.

        With cached log-probs ref_logp and kl are absent: `token_values` adds what the batch carries.
        Raises ValueError when a row is padded on the left or in the middle.
        """
        require_right_padding(is_token)

        def states(network: PreTrainedModel) -> Tensor:
            return self.hidden_states(network, input_ids, is_token)[:, :-1][is_action]

        hidden = self.hidden_states(self.policy, input_ids, is_token)
        scored = self._scores(hidden[:, :-1][is_action], states, input_ids[:, 1:][is_action], ref_hidden)
        if isinstance(self.value, HeadOnTrunk):
            value = self.value(hidden)
        else:
            value = values_at_every_position(self.value, input_ids, is_token, hidden_states=self.hidden_states)
        return {**{name: at_actions(score, is_action) for name, score in scored.items()}, "value": value[:, :-1]}

    def _scores(
        self, hidden: Tensor, states: Callable[[PreTrainedModel], Tensor], chosen: Tensor, ref_hidden: Tensor | None
    ) -> dict[str, Tensor]:
        """[N] each, from the policy's final hidden states [N, D] before the chosen tokens; `states` runs a network."""
        head = self.policy.get_output_embeddings()
        if self.reference_from is ReferenceFrom.CACHED_LOG_PROBS:
            alone = score_chosen(hidden, head, chosen, chunk_size=self.chunk_size)
            return {"logp": alone.logp, "entropy": alone.entropy}
        scored = score_tokens(
            hidden,
            head,
            *self._beside(states, ref_hidden),
            chosen,
            chunk_size=self.chunk_size,
            has_kl_forward=self.has_kl_forward,
        )
        names = ("logp", "ref_logp", "kl", "entropy", "kl_forward")
        return {name: score for name in names if (score := getattr(scored, name)) is not None}

    @torch.no_grad()
    def _beside(
        self, states: Callable[[PreTrainedModel], Tensor], ref_hidden: Tensor | None
    ) -> tuple[Tensor, nn.Module]:
        """Final hidden states [N, D] of the reference, and its output head."""
        if self.reference_from is ReferenceFrom.ADAPTERS_OFF:
            with adapters_off(self.policy):
                return states(self.policy), self.policy.get_output_embeddings()
        if isinstance(self.reference, PreTrainedModel):
            return states(self.reference), self.reference.get_output_embeddings()
        if ref_hidden is None or self.reference is None:
            raise ValueError(
                "the batch has no ref_hidden, needed the reference's final hidden states before its actions: was it "
                "collated without the reference cache?"
            )
        return ref_hidden, self.reference


def token_values(model: nn.Module, batch: TokenBatch) -> TokenValues:
    """The `forward` of the OREO trainer: networks and batch in, what an objective sees out."""
    inputs = {"input_ids": batch.input_ids, "is_token": batch.is_token, "is_action": batch.is_action}
    if batch.ref_hidden is not None:
        inputs["ref_hidden"] = batch.ref_hidden
    scored = {"kl": None, **model(**inputs)}
    if batch.ref_logp is not None:
        scored["ref_logp"] = at_actions(batch.ref_logp, batch.is_action)
    elif "ref_logp" not in scored:
        raise ValueError("the batch has no ref_logp and the model no reference: collated without the reference cache?")
    return TokenValues(**scored, reward=batch.reward, is_action=batch.is_action, is_state=batch.is_state)


@torch.no_grad()
def action_states(model: PreTrainedModel, batch: TokenBatch, *, hidden_states: HiddenStates = padded_hidden) -> Tensor:
    """Final hidden states [N, D] before the N actions of a batch, row after row."""
    require_right_padding(batch.is_token)
    return hidden_states(model, batch.input_ids, batch.is_token)[:, :-1][batch.is_action]


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
    chosen = batch.input_ids[:, 1:][batch.is_action]
    logp, ref_logp = (
        score_chosen(
            action_states(model, batch, hidden_states=hidden_states),
            model.get_output_embeddings(),
            chosen,
            chunk_size=chunk_size,
        ).logp
        for model in (policy, reference)
    )
    return PathScores(at_actions(logp, batch.is_action), at_actions(ref_logp, batch.is_action), batch.is_action)


def require_same_vocabulary(policy: PreTrainedModel, other: PreTrainedModel, name: str, reason: str) -> None:
    """Raises ValueError when `other`, called `name`, has another number of tokens than the policy."""
    n_policy, n_other = (model.config.get_text_config().vocab_size for model in (policy, other))
    if n_policy != n_other:
        raise ValueError(f"policy has {n_policy} tokens, {name} {n_other}: {reason}")


def _check_reference(
    policy: PreTrainedModel, reference: PreTrainedModel | nn.Linear | None, reference_from: ReferenceFrom
) -> None:
    expected = {ReferenceFrom.LIVE: PreTrainedModel, ReferenceFrom.CACHED_HIDDEN: nn.Linear}
    if not isinstance(reference, expected.get(reference_from, type(None))):
        raise ValueError(
            f"reference_from is {reference_from.value}, and the reference a {type(reference).__name__}: needed a "
            "causal LM if live, its output head (nn.Linear) for cached_hidden, None otherwise"
        )
    n_tokens = policy.config.get_text_config().vocab_size
    if isinstance(reference, nn.Linear) and reference.out_features != n_tokens:
        raise ValueError(f"policy has {n_tokens} tokens, the head of the reference {reference.out_features}")
    if isinstance(reference, PreTrainedModel):
        require_same_vocabulary(policy, reference, "reference", "it must be the model that the policy started from")
    if reference_from is ReferenceFrom.ADAPTERS_OFF:
        require_adapters(policy)


def require_right_padding(is_token: Tensor) -> None:
    """Raises ValueError naming the rows [B, L] with padding before a token."""
    resumes = is_token[:, 1:] & ~is_token[:, :-1]
    if resumes.any():
        rows = resumes.any(-1).nonzero().squeeze(-1).tolist()
        raise ValueError(
            f"rows {rows} of the batch have padding before a token; needed right-padded rows (a TokenBatch is): "
            "was the tokenizer's padding_side 'left'?"
        )


def at_actions(scored: Tensor, is_action: Tensor) -> Tensor:
    """[N] back to [B, T], 0 where nothing was chosen; out of place, so the gradient flows."""
    return torch.zeros(is_action.shape, dtype=scored.dtype, device=scored.device).masked_scatter(is_action, scored)
