"""Adapters off: the policy as it was before it was given any; and the head that stands beside cached hidden states."""

import pytest
import torch
from torch import nn

from posttrain.models.actor_critic import ActorCritic, token_values
from posttrain.models.lora import add_lora_to_policy
from posttrain.models.policy import load_policy
from posttrain.models.reference import ReferenceFrom, adapters_off, frozen_head
from posttrain.models.value import value_model_from_policy
from tests.models.tiny_models import FAMILIES, VOCAB, batch, write_policy

pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: write_policy(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def with_moved_adapters(folder):
    """A policy whose adapters, all of them trained, are no longer 0."""
    policy = load_policy(folder, dtype=torch.float32)
    add_lora_to_policy(policy, rank=3, alpha=6.0, seed=0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".lora_B." in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return policy


def logits(policy):
    rows = batch()
    with torch.no_grad():
        return policy(rows.input_ids, attention_mask=rows.is_token.long()).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_with_adapters_off_is_the_one_it_started_from_and_on_again_afterwards(folders, family):
    policy = with_moved_adapters(folders[family])
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    adapted = logits(policy)
    with adapters_off(policy):
        assert torch.equal(logits(policy), logits(load_policy(folders[family], dtype=torch.float32)))
    assert torch.equal(logits(policy), adapted)
    assert {name for name, weight in policy.named_parameters() if weight.requires_grad} == trained
    assert trained == {name for name, _ in policy.named_parameters() if ".lora_" in name}


def test_adapters_are_on_again_after_an_error(folders):
    policy = with_moved_adapters(folders["llama"])
    adapted = logits(policy)
    with pytest.raises(ZeroDivisionError), adapters_off(policy):
        1 / 0  # noqa: B018
    assert torch.equal(logits(policy), adapted)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_with_adapters_off_as_reference_is_that_beside_a_live_copy(folders, family):
    grads = []
    for source in (ReferenceFrom.LIVE, ReferenceFrom.ADAPTERS_OFF):
        policy = with_moved_adapters(folders[family])
        value = value_model_from_policy(folders[family], dtype=torch.float32)
        reference = load_policy(folders[family], dtype=torch.float32) if source is ReferenceFrom.LIVE else None
        model = ActorCritic(policy, value, reference, chunk_size=5, reference_from=source, has_kl_forward=True)
        v = token_values(model.train(), batch())
        assert v.kl[v.is_action].min() > 1e-4
        (v.logp.sum() + v.kl.sum() + v.kl_forward.sum()).backward()
        grads.append([weight.grad for weight in policy.parameters() if weight.requires_grad])
    for live, off in zip(*grads, strict=True):
        assert torch.count_nonzero(live) > 0
        assert torch.equal(live, off)


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_forward_of_the_module_is_that_of_dense_forwards_of_unpadded_rows(folders, family):
    policy = with_moved_adapters(folders[family])
    reference = load_policy(folders[family], dtype=torch.float32)
    value = value_model_from_policy(folders[family], dtype=torch.float32)
    rows = batch()
    v = token_values(ActorCritic(policy, value, reference, chunk_size=5, has_kl_forward=True), rows)
    for b, n in enumerate(rows.is_token.sum(-1).tolist()):
        ids = rows.input_ids[b : b + 1, :n]
        log_pi, log_ref = (network(ids).logits[0, :-1].log_softmax(-1) for network in (policy, reference))
        expected = (log_ref.exp() * (log_ref - log_pi)).sum(-1)[2:]  # three tokens of prompt
        # float32, sums over another batch shape.
        torch.testing.assert_close(v.kl_forward[b, 2 : n - 1], expected, rtol=1e-4, atol=1e-5)
        assert torch.count_nonzero(v.kl_forward[b, :2]) == torch.count_nonzero(v.kl_forward[b, n - 1 :]) == 0


def test_frozen_head_does_not_follow_the_one_it_was_taken_from(folders):
    head = load_policy(folders["qwen2"], dtype=torch.float32).get_output_embeddings()
    copy = frozen_head(head)
    assert torch.equal(copy.weight, head.weight)
    with torch.no_grad():
        head.weight.add_(1.0)
    assert not torch.equal(copy.weight, head.weight)
    assert not copy.weight.requires_grad


@pytest.mark.parametrize(
    ("source", "reference", "message"),
    [
        (ReferenceFrom.LIVE, None, "reference_from is live, and the reference a NoneType: needed a causal LM if live"),
        (
            ReferenceFrom.CACHED_LOG_PROBS,
            nn.Linear(32, VOCAB),
            "cached_log_probs, and the reference a Linear: .* None",
        ),
        (ReferenceFrom.CACHED_HIDDEN, nn.Linear(32, VOCAB + 1), "policy has 37 tokens, the head of the reference 38"),
        (ReferenceFrom.ADAPTERS_OFF, None, "but the policy has none: set policy_lora_rank"),
    ],
)
def test_reference_that_does_not_fit_its_source_is_refused(folders, source, reference, message):
    policy = load_policy(folders["llama"], dtype=torch.float32)
    value = value_model_from_policy(folders["llama"], dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        ActorCritic(policy, value, reference, chunk_size=5, reference_from=source)


def test_head_that_is_no_plain_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"output head is a Embedding, needed a plain nn\.Linear"):
        frozen_head(nn.Embedding(3, 2))
