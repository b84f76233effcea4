"""Every objective on packed rows: the loss and the gradients of the padded ones.

The objectives see [B, T] values either way, so what is held here is everything before them: three trunks, the value
head and the log-probability core. float64 tolerance 1e-10: gradients are sums over 58 actions and two layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain import losses
from posttrain.losses import Term, total
from posttrain.models.actor_critic import ActorCritic, token_values
from posttrain.models.packing import packed_hidden, padded_hidden, use_packed_attention
from posttrain.schema import PairValues, PathScores, RolloutValues, TokenBatch, TokenValues
from tests.models.test_packing import in_float64
from tests.models.tiny_models import FAMILIES, actor_critic, batch, trained, write_policy

LENGTHS = (9, 4, 40, 17)  # the first three tokens are a prompt, so 4 is the shortest row with an action
COUNTS = {"sequence": 4, "pair": 2, "token": 58}


def pairs(v: TokenValues) -> PairValues:
    """Rows 0 and 1 were preferred to rows 2 and 3."""
    sides = (slice(0, 2), slice(2, 4))
    return PairValues(*(PathScores(v.logp[side], v.ref_logp[side], v.is_action[side]) for side in sides))


def rollouts(v: TokenValues) -> RolloutValues:
    """Sampled by a policy a little away from this one; advantages of both signs."""
    advantage = torch.tensor([1.0, -0.5, 2.0, -1.0], dtype=v.logp.dtype)[:, None].expand_as(v.logp)
    return RolloutValues(v.logp, v.logp.detach() - 0.1, advantage, v.kl, v.entropy, v.is_action)


OBJECTIVES: dict[str, Callable[[TokenValues], tuple[Term, ...]]] = {
    "oreo_token": lambda v: losses.oreo_token(v, beta=0.3, alpha=0.1),
    "oreo_step": lambda v: losses.oreo_step(v, beta=0.3, alpha=0.1),
    "oreo_response": lambda v: losses.oreo_response(v, beta=0.3, alpha=0.1),
    "oreo_one_step": lambda v: losses.oreo_one_step(v, beta=0.3, alpha=0.1),
    "critic_only": lambda v: losses.critic_only(v, beta=0.3),
    "kl_to_reference": lambda v: losses.kl_to_reference(v, alpha=0.5),
    "dpo": lambda v: losses.dpo(pairs(v), beta=0.1),
    "dpo_smoothed": lambda v: losses.dpo_smoothed(pairs(v), beta=0.1, label_smoothing=0.2),
    "ipo": lambda v: losses.ipo(pairs(v), beta=0.1),
    "reinforce": lambda v: losses.reinforce(rollouts(v), alpha=0.1),
    "grpo": lambda v: losses.grpo(rollouts(v), clip_low=0.2, clip_high=0.2, alpha=0.1),
    "grpo_token_mean": lambda v: losses.grpo_token_mean(rollouts(v), clip_low=0.2, clip_high=0.2, alpha=0.1),
}
NOT_FORWARDED = {"kl_from_reference"}  # wants kl_forward, which the forward of the networks does not compute


def test_no_objective_is_left_out():
    functions = {name: function for name in losses.__all__ if inspect.isfunction(function := getattr(losses, name))}
    objectives = {
        name for name, f in functions.items() if inspect.signature(f).return_annotation == "tuple[Term, ...]"
    }
    assert objectives == OBJECTIVES.keys() | NOT_FORWARDED


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_policy(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def networks(folder: Path, dtype: torch.dtype, *, is_packed: bool) -> ActorCritic:
    model = trained(actor_critic(folder, dtype=dtype))
    if dtype == torch.float64:
        in_float64(model)
    if is_packed:
        for network in (model.policy, model.value, model.reference):
            use_packed_attention(network)
    model.hidden_states = packed_hidden if is_packed else padded_hidden
    return model


def loss_and_gradients(model: ActorCritic, rows: TokenBatch, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    loss = total(OBJECTIVES[name](token_values(model, rows)), COUNTS)
    model.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_those_of_padded_rows(folders, family, name):
    rows = batch(LENGTHS, n_columns=max(LENGTHS))
    padded, packed = (
        loss_and_gradients(networks(folders[family], torch.float64, is_packed=is_packed), rows, name)
        for is_packed in (False, True)
    )
    assert_close(packed[0], padded[0], rtol=1e-12, atol=1e-12)
    assert packed[1].keys() == padded[1].keys()
    assert max(gradient.abs().max() for gradient in padded[1].values()) > 1e-3
    for key, gradient in padded[1].items():
        assert_close(packed[1][key], gradient, rtol=1e-10, atol=1e-10, msg=lambda text, key=key: key + text)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_float32_losses_differ_by_at_most_1e_5(folders, name):
    # Relative where the loss is above 1: with these weights β Σ ρ reaches tens, and squares of it hundreds.
    rows = batch(LENGTHS, n_columns=max(LENGTHS))
    padded, packed = (
        loss_and_gradients(networks(folders["llama"], torch.float32, is_packed=is_packed), rows, name)[0]
        for is_packed in (False, True)
    )
    assert_close(packed, padded, rtol=1e-5, atol=1e-5)
