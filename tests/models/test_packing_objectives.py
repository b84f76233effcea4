"""Every objective on packed rows: the loss and the gradients of the padded ones.

The objectives see [B, T] values either way, so what is held here is everything before them: three trunks, the value
head and the log-probability core. float64 tolerance 1e-10: gradients are sums over 58 actions and two layers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import total
from posttrain.models.actor_critic import ActorCritic, token_values
from posttrain.models.packing import packed_hidden, padded_hidden, use_packed_attention
from posttrain.schema import TokenBatch
from tests.models.test_packing import in_float64
from tests.models.tiny_models import FAMILIES, actor_critic, batch, trained, write_policy
from tests.objectives import CASES

LENGTHS = (9, 4, 40, 17)  # the first three tokens are a prompt, so 4 is the shortest row with an action
COUNTS = {"sequence": 4, "pair": 2, "token": 58}


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
    model.has_kl_forward = True
    model.hidden_states = packed_hidden if is_packed else padded_hidden
    return model


def loss_and_gradients(model: ActorCritic, rows: TokenBatch, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    case = CASES[name]
    loss = total(case(case.read(token_values(model, rows))), COUNTS)
    model.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CASES)
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


@pytest.mark.parametrize("name", CASES)
def test_float32_losses_differ_by_at_most_1e_5(folders, name):
    # Relative where the loss is above 1: with these weights β Σ ρ reaches tens, and squares of it hundreds.
    rows = batch(LENGTHS, n_columns=max(LENGTHS))
    padded, packed = (
        loss_and_gradients(networks(folders["llama"], torch.float32, is_packed=is_packed), rows, name)[0]
        for is_packed in (False, True)
    )
    assert_close(packed, padded, rtol=1e-5, atol=1e-5)
