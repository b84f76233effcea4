"""The value model: zero head, float32 head, what it saves, what it refuses, and what transformers makes of it."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from posttrain.models.policy import load_policy
from posttrain.models.value import (
    ValueHead,
    load_value_model,
    value_model_from_policy,
    values_at_every_position,
)
from tests.models.tiny_models import FAMILIES, batch, config_of, write_policy

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: write_policy(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def with_trained_head(folder, dtype=torch.float32):
    """Head numbers that bfloat16 cannot hold."""
    model = value_model_from_policy(folder, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, 32, generator=generator))
    assert not torch.equal(model.score.weight.bfloat16().float(), model.score.weight)
    return model


def values(model, rows):
    with torch.no_grad():
        return values_at_every_position(model, rows.input_ids, rows.is_token)


@pytest.mark.parametrize("family", FAMILIES)
def test_value_model_starts_as_the_policy_trunk_under_a_zero_head(folders, family):
    policy, value = (load(folders[family], dtype=torch.float32) for load in (load_policy, value_model_from_policy))
    trunk = policy.base_model.state_dict()
    assert value.base_model.state_dict().keys() == trunk.keys()
    assert all(torch.equal(weight, trunk[name]) for name, weight in value.base_model.state_dict().items())
    assert torch.count_nonzero(value.score.weight) == 0
    assert torch.count_nonzero(values(value, batch())) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_at_the_last_token_equals_the_classifier_forward_of_transformers(folders, tmp_path, family, dtype):
    # What a server with LAST pooling returns for a prefix is transformers' own forward, on the saved files.
    # bfloat16 trunks differ by their rounding (2^-8 relative) when the batch shape changes the order of sums.
    with_trained_head(folders[family], dtype).save_pretrained(tmp_path)
    rows = batch()
    ours = values(load_value_model(tmp_path, dtype=dtype), rows)
    assert ours.dtype == torch.float32
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype).eval()
    for b, n in enumerate(rows.is_token.sum(-1).tolist()):
        with torch.no_grad():
            logits = plain(rows.input_ids[b : b + 1, :n]).logits
        assert logits.shape == (1, 1)
        tolerance = 1e-5 if dtype == torch.float32 else 0.1
        assert_close(ours[b, n - 1], logits[0, 0].float(), rtol=0, atol=tolerance)
        assert abs(ours[b, n - 1]) > 0.2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_bitwise_equal_after_save_and_load(folders, tmp_path, family, dtype):
    model = with_trained_head(folders[family], dtype)
    model.save_pretrained(tmp_path)
    loaded = load_value_model(tmp_path, dtype=dtype)
    assert torch.equal(loaded.score.weight, model.score.weight)
    assert torch.equal(values(loaded, batch()), values(model, batch()))


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float32, "F32"), (torch.bfloat16, "BF16")])
def test_saved_trunk_has_the_training_dtype_and_the_head_float32(folders, tmp_path, dtype, stored):
    with_trained_head(folders["llama"], dtype).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as tensors:
        kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    assert kinds.pop("score.weight") == "F32"
    assert set(kinds.values()) == {stored}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert config["architectures"] == ["LlamaForSequenceClassification"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_policy_saves_in_the_dtype_it_was_trained_in(folders, tmp_path, dtype):
    load_policy(folders["llama"], dtype=dtype).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_head_of_a_sharded_checkpoint_is_found(folders, tmp_path):
    model = with_trained_head(folders["llama"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(load_value_model(tmp_path, dtype=torch.bfloat16).score.weight, model.score.weight)


def test_head_computes_in_float32_inside_autocast_and_on_a_bfloat16_trunk():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 32, generator=generator).bfloat16()
    head = ValueHead(torch.randn(1, 32, generator=generator))
    expected = F.linear(hidden.float(), head.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(hidden)
    assert torch.equal(inside, expected)
    assert torch.equal(head(hidden), expected)


def test_policy_folder_is_refused_as_a_value_model(folders):
    with pytest.raises(ValueError, match=r"lacks \['score.weight'\].*Is this a policy\?"):
        load_value_model(folders["llama"], dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_value_model_folder_is_refused_as_a_policy(folders, tmp_path, family):
    value_model_from_policy(folders[family], dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="this is a value model, needed a policy"):
        load_policy(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_head_that_is_not_finite_is_refused(folders, tmp_path, number):
    model = value_model_from_policy(folders["llama"], dtype=torch.float32)
    with torch.no_grad():
        model.score.weight[0, 3] = number
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"score.weight holds NaN or Inf; the run that wrote it had diverged"):
        load_value_model(tmp_path, dtype=torch.float32)


def test_classifier_with_two_labels_is_refused(tmp_path):
    config = config_of("llama")
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has num_labels=2, a value model has 1"):
        load_value_model(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("load", [load_policy, value_model_from_policy])
def test_folder_that_lacks_trunk_weights_is_refused(folders, tmp_path, load):
    load_policy(folders["llama"], dtype=torch.float32).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \['model.layers.1.mlp.up_proj.weight'\].*random"):
        load(tmp_path, dtype=torch.float32)


def test_value_model_that_lacks_trunk_weights_is_not_taken_for_a_policy(folders, tmp_path):
    value_model_from_policy(folders["llama"], dtype=torch.float32).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \['model.norm.weight'\], which would start from random.*whole"):
        load_value_model(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("load", [load_policy, value_model_from_policy])
def test_trunk_that_is_not_finite_is_refused(folders, tmp_path, load):
    model = load_policy(folders["llama"], dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.norm.weight hold NaN or Inf; did the run .* an earlier checkpoint"):
        load(tmp_path, dtype=torch.float32)


def test_output_head_that_is_not_finite_is_refused(folders, tmp_path):
    model = load_policy(folders["llama"], dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lm_head.weight hold NaN or Inf"):
        load_policy(tmp_path, dtype=torch.float32)
