"""LoRA adapters on a value model: where they sit, what they start as, and the plain model they are merged into."""

from pathlib import Path

import pytest
import torch
from torch import nn

from posttrain.models.lora import ADAPTER, add_lora, has_lora, merge_lora
from posttrain.models.value import value_model_from_policy, values_at_every_position
from tests.models.tiny_models import FAMILIES, batch, write_policy

pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_policy(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def with_moved_adapters(folder: Path, dtype: torch.dtype):
    """Adapters and head as after some training: seeded noise."""
    model = value_model_from_policy(folder, dtype=dtype)
    add_lora(model, rank=3, alpha=6.0, seed=0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
                weight.copy_((1.0 if name == "score.weight" else 0.3) * noise)
    return model


def values(model) -> torch.Tensor:
    rows = batch()
    with torch.no_grad():
        return values_at_every_position(model, rows.input_ids, rows.is_token)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_trunk_is_adapted_and_only_adapters_and_head_are_trained(folders, family):
    plain = value_model_from_policy(folders[family], dtype=torch.float32)
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear) or _is_conv1d(module)}
    linear.remove("score")
    assert len(linear) == (8 if family == "gpt2" else 14)  # of two layers: 4 each, and 7 each with a gated MLP
    add_lora(plain, rank=3, alpha=3.0, seed=0)
    trained = {name for name, weight in plain.named_parameters() if weight.requires_grad}
    assert trained == {
        "score.weight",
        *(f"{name}.lora_{side}.default.weight" for name in linear for side in "AB"),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_the_plain_model_until_the_adapters_move(folders, family):
    plain = value_model_from_policy(folders[family], dtype=torch.float32)
    adapted = value_model_from_policy(folders[family], dtype=torch.float32)
    for model in (plain, adapted):
        nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(3))
    add_lora(adapted, rank=3, alpha=6.0, seed=0)
    assert has_lora(adapted)
    assert not has_lora(plain)
    torch.testing.assert_close(values(adapted), values(plain), rtol=0, atol=0)


def test_adapters_are_drawn_from_the_seed_alone_and_leave_other_random_streams_alone(folders):
    drawn = []
    for seed, disturbance in ((5, 1), (5, 2), (6, 1)):
        torch.manual_seed(disturbance)
        model = value_model_from_policy(folders["llama"], dtype=torch.float32)
        state = torch.get_rng_state()
        add_lora(model, rank=3, alpha=3.0, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(model.get_submodule("model.layers.0.mlp.up_proj").lora_A[ADAPTER].weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_values_of_the_adapted_model(folders, family):
    # float64: adapted and merged layers add the same numbers in another order, which 1e-10 covers many times over.
    adapted = with_moved_adapters(folders[family], torch.float64)
    plain = value_model_from_policy(folders[family], dtype=torch.float64)
    started_as = values(plain)
    plain.load_state_dict(merge_lora(adapted, adapted.state_dict()), strict=True)
    torch.testing.assert_close(values(plain), values(adapted), rtol=0, atol=1e-10)
    assert (values(plain) - started_as).abs().max() > 0.1


def test_a_merged_layer_is_w_plus_alpha_over_rank_b_a(folders):
    adapted = with_moved_adapters(folders["llama"], torch.float64)
    layer = adapted.get_submodule("model.layers.1.self_attn.v_proj")
    a, b, w = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.base_layer.weight
    expected = w.clone()
    for out in range(w.shape[0]):
        for into in range(w.shape[1]):
            expected[out, into] += 6.0 / 3 * sum(b[out, r] * a[r, into] for r in range(3))
    merged = merge_lora(adapted, adapted.state_dict())["model.layers.1.self_attn.v_proj.weight"]
    torch.testing.assert_close(merged, expected.detach(), rtol=0, atol=1e-12)


def test_a_bfloat16_trunk_has_float32_adapters_and_is_rounded_once_when_merged(folders):
    adapted = with_moved_adapters(folders["llama"], torch.bfloat16)
    layer = adapted.get_submodule("model.layers.0.mlp.down_proj")
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    assert a.dtype == b.dtype == torch.float32
    merged = merge_lora(adapted, adapted.state_dict())["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(merged, (layer.base_layer.weight.float() + 2.0 * (b @ a)).bfloat16())


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2's linear layer
