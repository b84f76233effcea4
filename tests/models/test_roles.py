"""What policy and value model may share: the numbers stay those of two networks apart, the memory does not."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig

from posttrain.models.actor_critic import ActorCritic
from posttrain.models.lora import add_lora, add_lora_to_policy
from posttrain.models.policy import load_policy
from posttrain.models.reference import ReferenceFrom
from posttrain.models.roles import HeadOnTrunk, share_frozen_weights
from posttrain.models.value import load_value_model, value_model_from_policy, values_at_every_position
from posttrain.training.network_files import load_network, save_network
from tests.models.tiny_models import FAMILIES, batch, write_policy


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_policy(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def on_trunk(folder: Path, *, gradient_scale: float, dtype: torch.dtype = torch.float64) -> ActorCritic:
    """A policy with a head of seeded noise, beside a live reference."""
    policy = load_policy(folder, dtype=dtype)
    head = HeadOnTrunk(policy, gradient_scale=gradient_scale)
    torch.nn.init.normal_(head.score.weight, generator=torch.Generator().manual_seed(5))
    return ActorCritic(policy, head, load_policy(folder, dtype=dtype), chunk_size=4)


def forward(model: ActorCritic) -> dict[str, torch.Tensor]:
    rows = batch()
    return model(rows.input_ids, rows.is_token, rows.is_action)


def two_adapters(folder: Path, *, is_shared: bool) -> ActorCritic:
    policy, value = load_policy(folder, dtype=torch.float64), value_model_from_policy(folder, dtype=torch.float64)
    add_lora_to_policy(policy, rank=3, alpha=6.0, seed=0)
    add_lora(value, rank=2, alpha=2.0, seed=1)
    if is_shared:
        share_frozen_weights(policy, value)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in (*policy.parameters(), *value.parameters()):
            if weight.requires_grad:
                weight.normal_(0.0, 0.3, generator=generator)
    return ActorCritic(policy, value, None, chunk_size=4, reference_from=ReferenceFrom.ADAPTERS_OFF)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_reads_the_final_hidden_states_that_the_policys_own_forward_gives(folders, family):
    model = on_trunk(folders[family], gradient_scale=0.3)
    rows = batch()
    plain = AutoModelForCausalLM.from_pretrained(folders[family], dtype=torch.float64)
    said = plain(input_ids=rows.input_ids, attention_mask=rows.is_token.long(), output_hidden_states=True)
    expected = (said.hidden_states[-1] @ model.value.score.weight[0])[:, :-1]
    torch.testing.assert_close(forward(model)["value"][rows.is_action], expected[rows.is_action], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_scale_multiplies_what_enters_the_trunk_and_nothing_else(folders, family):
    # V is the same number at every scale; d loss / d trunk is linear in it, d loss / d head does not know it.
    def gradients(scale: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = on_trunk(folders[family], gradient_scale=scale)
        value = forward(model)["value"]
        value.square().sum().backward()
        trunk = {name: p.grad for name, p in model.policy.named_parameters() if p.grad is not None}
        return value.detach(), {"score": model.value.score.weight.grad, **trunk}

    (whole, full), (half, halved), (none, detached) = (gradients(scale) for scale in (1.0, 0.5, 0.0))
    assert torch.equal(whole, half) and torch.equal(whole, none)
    assert detached.keys() == {"score"}
    assert halved.keys() == full.keys() and len(full) > 10
    torch.testing.assert_close(halved["score"], full["score"], rtol=0, atol=0)
    for name in full.keys() - {"score"}:
        torch.testing.assert_close(halved[name], 0.5 * full[name], rtol=1e-10, atol=1e-12)
        assert full[name].abs().max() > 0 or "k_proj.bias" in name, name  # softmax does not see a key's bias


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_on_the_policy_is_saved_as_the_value_model_that_both_amount_to(folders, tmp_path, family, rank):
    model = on_trunk(folders[family], gradient_scale=0.0, dtype=torch.float32)
    if rank:
        pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
        add_lora_to_policy(model.policy, rank=rank, alpha=6.0, seed=0)
        with torch.no_grad():
            for name, weight in model.policy.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(6))
    rows = batch()
    with torch.no_grad():
        expected = forward(model)["value"][rows.is_action]
        save_network(tmp_path / "value", model, model.state_dict(), name="value")
        loaded = load_value_model(tmp_path / "value", dtype=torch.float32)
        values = values_at_every_position(loaded, rows.input_ids, rows.is_token)[:, :-1][rows.is_action]
    torch.testing.assert_close(values, expected, rtol=1e-5 if rank else 0, atol=1e-5 if rank else 0)
    assert expected.std() > 0.1
    fresh = HeadOnTrunk(model.policy, gradient_scale=0.0)
    load_network(tmp_path / "value", fresh)
    assert torch.equal(fresh.score.weight, model.value.score.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_adapters_on_one_base_give_the_numbers_and_gradients_of_two_networks(folders, family):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    apart, shared = (two_adapters(folders[family], is_shared=is_shared) for is_shared in (False, True))
    for model in (apart, shared):
        said = forward(model)
        (said["value"].square().sum() + said["logp"].sum() + said["kl"].sum()).backward()
        model.said = said  # read below
    for name, expected in apart.said.items():
        torch.testing.assert_close(shared.said[name], expected, rtol=0, atol=0)
    gradients = {name: p.grad for name, p in shared.named_parameters() if p.requires_grad}
    assert gradients.keys() == {name for name, p in apart.named_parameters() if p.requires_grad}
    for name, p in apart.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(gradients[name], p.grad, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_adapters_hold_every_frozen_weight_once(folders, family):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    apart, shared = (two_adapters(folders[family], is_shared=is_shared) for is_shared in (False, True))
    own = {
        name for name, p in shared.value.named_parameters() if id(p) not in set(map(id, shared.policy.parameters()))
    }
    assert own == {name for name, p in shared.value.named_parameters() if p.requires_grad}
    frozen = sum(p.numel() for p in apart.value.parameters() if not p.requires_grad)
    count = {
        name: sum(p.numel() for p in model.parameters()) for name, model in (("apart", apart), ("shared", shared))
    }
    assert count["apart"] - count["shared"] == frozen


def test_a_network_without_adapters_cannot_share_its_weights(folders):
    pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
    policy = load_policy(folders["llama"], dtype=torch.float32)
    value = value_model_from_policy(folders["llama"], dtype=torch.float32)
    add_lora(value, rank=2, alpha=2.0, seed=0)
    with pytest.raises(
        ValueError, match="the policy has no LoRA adapters, and would move the weights under the other"
    ):
        share_frozen_weights(policy, value)


def test_two_adapters_are_refused_where_shared_weights_cannot_be_sharded(folders, monkeypatch):
    policy, value = (load(folders["llama"], dtype=torch.float32) for load in (load_policy, value_model_from_policy))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP2 cannot shard a weight that two networks share: take roles separate"):
        share_frozen_weights(policy, value)


def test_an_architecture_without_a_sequence_classifier_is_refused_before_training():
    config = CohereConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
    )
    with pytest.raises(ValueError, match="no sequence classifier on the trunk of CohereForCausalLM"):
        HeadOnTrunk(AutoModelForCausalLM.from_config(config), gradient_scale=0.0)
