"""The actor-critic module against plain forwards of its three models, row by row and without padding.

float32 tolerance 1e-5: two layers of 32 units round at 1e-7 relative, and another batch shape sums in another order.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from posttrain.losses import oreo_token, total
from posttrain.models.actor_critic import ActorCritic, path_scores, token_values
from posttrain.models.policy import frozen_copy, load_policy
from posttrain.models.value import value_model_from_policy
from posttrain.schema import TokenBatch, TokenValues
from tests.models.tiny_models import FAMILIES, VOCAB, actor_critic, batch, trained, write_policy

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: write_policy(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def dense_row(model: ActorCritic, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logp, ref_logp, KL of one unpadded row, from the whole models' own logits."""
    log_pi = model.policy(ids[None]).logits[0, :-1].log_softmax(-1)
    log_ref = model.reference(ids[None]).logits[0, :-1].log_softmax(-1).detach()
    chosen = ids[1:, None]
    kl = torch.nn.functional.kl_div(log_ref, log_pi, log_target=True, reduction="none").sum(-1)
    return log_pi.gather(-1, chosen).squeeze(-1), log_ref.gather(-1, chosen).squeeze(-1), kl


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_equal_dense_forwards_of_unpadded_rows(folders, family):
    model = trained(actor_critic(folders[family]))
    rows = batch()
    v = token_values(model, rows)
    ours, theirs = torch.zeros(()), torch.zeros(())
    for b, n in enumerate(rows.is_token.sum(-1).tolist()):
        logp, ref_logp, kl = dense_row(model, rows.input_ids[b, :n])
        actions = slice(2, n - 1)  # the prompt is three tokens, so the first action is taken at position 2
        for got, expected in ((v.logp, logp), (v.ref_logp, ref_logp), (v.kl, kl)):
            assert_close(got[b, actions], expected[actions], **CLOSE)
            assert torch.count_nonzero(got[b, :2]) == torch.count_nonzero(got[b, n - 1 :]) == 0
        assert v.kl[b, actions].min() > 1e-3
        weight = torch.linspace(-1, 1, n - 3)
        ours = ours + (weight * v.logp[b, actions] + v.kl[b, actions]).sum()
        theirs = theirs + (weight * logp[actions] + kl[actions]).sum()
    parameters = list(model.policy.parameters())
    gradients = (torch.autograd.grad(loss, parameters) for loss in (ours, theirs))
    for grad, expected in zip(*gradients, strict=True):
        assert_close(grad, expected, rtol=1e-4, atol=1e-4)  # sums over 19 actions and three layers of weights


@pytest.mark.parametrize("family", FAMILIES)
def test_path_scores_equal_dense_forwards_of_unpadded_rows_and_carry_no_gradient(folders, family):
    model = trained(actor_critic(folders[family]))
    rows = batch()
    scores = path_scores(model.policy, model.reference, rows, chunk_size=5)
    assert not scores.logp.requires_grad
    for b, n in enumerate(rows.is_token.sum(-1).tolist()):
        logp, ref_logp, _ = dense_row(model, rows.input_ids[b, :n])
        actions = slice(2, n - 1)
        for got, expected in ((scores.logp, logp), (scores.ref_logp, ref_logp)):
            assert_close(got[b, actions], expected[actions].detach(), **CLOSE)
            assert torch.count_nonzero(got[b, :2]) == torch.count_nonzero(got[b, n - 1 :]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing_that_is_read(folders, family):
    model = trained(actor_critic(folders[family]))
    rows = batch((9, 6, 11), n_columns=11)
    alone = [one_row(rows, b, n) for b, n in enumerate(rows.is_token.sum(-1).tolist())]
    together = token_values(model, rows)
    for b, row in enumerate(alone):
        v = token_values(model, row)
        width = v.logp.shape[1]
        for name in ("logp", "ref_logp", "kl", "entropy", "value"):
            assert_close(getattr(together, name)[b : b + 1, :width], getattr(v, name), **CLOSE)


def test_padding_changes_nothing_in_float64(folders):
    # GPT-2 only: Llama-like norms round to float32 inside. 1e-12 is float64 rounding over two layers.
    model = trained(actor_critic(folders["gpt2"], dtype=torch.float64))
    rows, wider = batch((9,), n_columns=9), batch((9,), n_columns=15)
    assert torch.equal(wider.input_ids[:, :9], rows.input_ids)
    v, w = token_values(model, rows), token_values(model, wider)
    for name in ("logp", "ref_logp", "kl", "entropy", "value"):
        assert getattr(v, name).dtype == torch.float64
        assert_close(getattr(w, name)[:, :8], getattr(v, name), rtol=0, atol=1e-12)


def one_row(rows: TokenBatch, b: int, n: int) -> TokenBatch:
    """Row b alone, cut to its n tokens."""
    return TokenBatch(
        rows.input_ids[b : b + 1, :n],
        rows.is_token[b : b + 1, :n],
        rows.is_action[b : b + 1, : n - 1],
        rows.is_state[b : b + 1, : n - 1],
        rows.reward[b : b + 1, : n - 1],
        rows.row_id[b : b + 1],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_step_has_zero_ratio_zero_value_and_zero_kl_exactly(folders, family, dtype):
    # O14: then δ = −R in every state, so L_V = L_π = mean R² = (1 + 4 + 9) / 3 whatever β, and the KL term is 0.
    model = actor_critic(folders[family], dtype=dtype).train()
    v = token_values(model, batch())
    assert torch.equal(v.logp, v.ref_logp)
    assert torch.count_nonzero(v.logp) == v.is_action.sum()
    assert torch.count_nonzero(v.value) == 0
    assert torch.count_nonzero(v.kl) == 0
    terms = {term.name: term.value.sum().item() / 3 for term in oreo_token(v, beta=0.03, alpha=0.01)}
    assert terms["value"] == pytest.approx(14 / 3, rel=1e-6)  # float32
    assert terms["policy"] == pytest.approx(14 / 3, rel=1e-6)
    assert terms["kl_ref"] == 0.0


def test_value_is_read_at_the_state_before_the_action(folders):
    # Changing token j must leave V(s_t) alone for t < j, whose prefix ends before it (also t = j − 1, where j is the
    # action), and move V(s_t) for t >= j. Float32 attention over an equal prefix repeats bit for bit up to 1e-6.
    model = trained(actor_critic(folders["llama"]))
    rows = batch((11,), n_columns=11)
    before = token_values(model, rows).value
    for j in (3, 7, 10):
        ids = rows.input_ids.clone()
        ids[0, j] = 3 if ids[0, j] != 3 else 4
        moved = (token_values(model, replace(rows, input_ids=ids)).value - before).abs()[0]
        assert (moved[:j] < 1e-6).all()
        assert (moved[j:] > 1e-3).all()


def networks_with_gradient(model: ActorCritic, v: TokenValues, name: str) -> set[str]:
    model.zero_grad(set_to_none=True)
    (term,) = [term for term in oreo_token(v, beta=0.3, alpha=0.5) if term.name == name]
    total((replace(term, coef=1.0),), {"sequence": 3}).backward()
    networks = {"policy": model.policy, "value": model.value, "reference": model.reference}
    return {key for key, network in networks.items() if any(p.grad is not None for p in network.parameters())}


@pytest.mark.parametrize(("name", "moves"), [("value", {"value"}), ("policy", {"policy"}), ("kl_ref", {"policy"})])
def test_each_term_moves_only_its_own_network(folders, name, moves):
    model = trained(actor_critic(folders["llama"]))
    assert networks_with_gradient(model, token_values(model, batch()), name) == moves


@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_chunk_size_does_not_change_the_loss(folders, chunk_size):
    losses = []
    for size in (7, chunk_size):
        model = trained(actor_critic(folders["llama"], chunk_size=size))
        losses.append(total(oreo_token(token_values(model, batch()), beta=0.3, alpha=0.5), {"sequence": 3}).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the same rows, in another order of float32 sums


def test_batch_without_actions_gives_zeros_and_finite_gradients(folders):
    # One rank or micro-batch may get only rows that were masked; it must still take part in the backward pass.
    model = trained(actor_critic(folders["llama"]))
    rows = batch()
    empty = torch.zeros_like(rows.is_action)
    v = token_values(model, replace(rows, is_action=empty, is_state=empty))
    assert torch.count_nonzero(v.logp) == 0
    total(oreo_token(v, beta=0.3, alpha=0.5), {"sequence": 3}).backward()
    for network in (model.policy, model.value):
        assert all(torch.count_nonzero(p.grad) == 0 for p in network.parameters() if p.grad is not None)
        assert any(p.grad is not None for p in network.parameters())


def test_training_mode_leaves_the_reference_frozen_and_in_evaluation_mode(folders):
    policy = load_policy(folders["llama"], dtype=torch.float32)
    reference = load_policy(folders["llama"], dtype=torch.float32).train()
    model = ActorCritic(
        policy, value_model_from_policy(folders["llama"], dtype=torch.float32), reference, chunk_size=4
    )
    assert not model.reference.training
    model.train()
    assert model.policy.training
    assert model.value.training
    assert [m for m in model.reference.modules() if m.training] == []
    assert [p for p in model.reference.parameters() if p.requires_grad] == []


def test_frozen_copy_does_not_follow_the_policy(folders):
    policy = load_policy(folders["qwen2"], dtype=torch.float32)
    reference = frozen_copy(policy)
    before = reference.get_output_embeddings().weight.clone()
    with torch.no_grad():
        policy.get_input_embeddings().weight.add_(1.0)
    assert torch.equal(reference.get_output_embeddings().weight, before)
    assert policy.get_output_embeddings().weight is policy.get_input_embeddings().weight  # tied, and still is
    assert reference.get_output_embeddings().weight is reference.get_input_embeddings().weight


@pytest.mark.parametrize("hole", [[0], [4], [0, 1]])
def test_left_and_inner_padding_are_refused(folders, hole):
    rows = batch((9, 6), n_columns=11)
    is_token = rows.is_token.clone()
    is_token[1, hole] = False
    with pytest.raises(ValueError, match=r"rows \[1\] of the batch have padding before a token.*right-padded"):
        token_values(actor_critic(folders["llama"]), replace(rows, is_token=is_token))


def test_reference_with_another_vocabulary_is_refused(folders, tmp_path):
    policy = load_policy(folders["llama"], dtype=torch.float32)
    value = value_model_from_policy(folders["llama"], dtype=torch.float32)
    other = load_policy(write_policy(tmp_path, "llama", vocab_size=VOCAB + 3), dtype=torch.float32)
    with pytest.raises(ValueError, match="policy has 37 tokens, reference 40: it must be the model that the policy"):
        ActorCritic(policy, value, other, chunk_size=4)


def test_value_model_with_another_vocabulary_is_refused(folders, tmp_path):
    policy = load_policy(folders["llama"], dtype=torch.float32)
    other = value_model_from_policy(write_policy(tmp_path, "llama", vocab_size=VOCAB + 3), dtype=torch.float32)
    with pytest.raises(ValueError, match="policy has 37 tokens, value model 40: both read the same token ids"):
        ActorCritic(policy, other, frozen_copy(policy), chunk_size=4)


def test_values_stay_float32_under_bfloat16_autocast(folders):
    model = trained(actor_critic(folders["llama"]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = token_values(model, batch())
    for name in ("logp", "ref_logp", "kl", "entropy", "value"):
        assert getattr(v, name).dtype == torch.float32
    rounded = v.value.bfloat16().float()
    assert (rounded != v.value)[v.is_state].float().mean() > 0.9  # not bfloat16 numbers in a float32 tensor
