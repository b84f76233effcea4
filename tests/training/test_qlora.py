"""QLoRA: the frozen weights in 4 bits, everything else as with LoRA on the weights that these 4 bits stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from posttrain.models.policy import load_policy
from posttrain.models.quantized import four_bits
from posttrain.models.value import load_value_model
from tests.training.tiny_oreo import step_logs, tiny_config, tiny_trainer, trajectories, write_policy

pytest.importorskip("peft", reason="peft is not installed: pip install posttrain[peft]")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install posttrain[qlora]")
bitsandbytes_functions = pytest.importorskip("bitsandbytes.functional", reason="as above")

QLORA = {"load_in_4bit": True, "policy_lora_rank": 4, "value_lora_rank": 3, "reference_from": "adapters_off"}
WIDTH = 64  # bitsandbytes quantises blocks of 64 weights


@pytest.fixture(scope="module")
def wide_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("wide"), hidden_size=WIDTH)


@pytest.fixture(scope="module")
def rounded_policy(wide_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with every weight of its body rounded to what 4 bits stand for, held in float32."""
    model = LlamaForCausalLM.from_pretrained(wide_policy)
    for name, weight in model.named_parameters():
        if "layers" in name and weight.ndim == 2:
            codes, state = bitsandbytes_functions.quantize_4bit(
                weight.data, quant_type="nf4", compress_statistics=True
            )
            weight.data = bitsandbytes_functions.dequantize_4bit(codes, state)
    folder = tmp_path_factory.mktemp("rounded")
    model.save_pretrained(folder)
    for file in wide_policy.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def finished(policy: Path, folder: Path, **changes):
    trainer = tiny_trainer(tiny_config(policy, folder, max_steps=4, **changes), trajectories(16))
    trainer.train()
    return trainer


@pytest.mark.parametrize("roles", ["separate", "two_adapters", "shared_trunk"])
def test_a_run_in_4_bits_is_the_lora_run_on_the_rounded_weights(wide_policy, rounded_policy, tmp_path, roles):
    changes = {**QLORA, "roles": roles} if roles != "shared_trunk" else {**QLORA, "roles": roles, "value_lora_rank": 0}
    packed = finished(wide_policy, tmp_path / "packed", **changes)
    plain = finished(rounded_policy, tmp_path / "plain", **{**changes, "load_in_4bit": False})
    for step, (here, there) in enumerate(zip(step_logs(packed), step_logs(plain), strict=True)):
        for name in ("loss", "loss/value", "policy/entropy", "policy/grad_norm"):
            assert here[name] == pytest.approx(there[name], rel=1e-5 if step == 0 else 1e-3), (step, name)
    whole = finished(wide_policy, tmp_path / "whole", **{**changes, "load_in_4bit": False})
    rounding = abs(step_logs(whole)[0]["policy/entropy"] - step_logs(plain)[0]["policy/entropy"])
    assert rounding > 1e-4  # so the agreement above is not that of any two runs


def test_the_saved_networks_are_ordinary_ones_with_the_rounded_weights_under_the_adapters(
    wide_policy, rounded_policy, tmp_path
):
    trainer = finished(wide_policy, tmp_path, **QLORA)
    trainer.save_model()
    rounded = load_file(rounded_policy / "model.safetensors")
    saved = load_file(tmp_path / "policy/model.safetensors")
    assert saved.keys() == rounded.keys()
    layer = trainer.model.policy.get_submodule("model.layers.0.self_attn.q_proj")
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(saved[name], rounded[name] + delta.detach(), rtol=1e-5, atol=1e-6)
    assert delta.abs().max() > 1e-3
    ids = torch.tensor([[4, 9, 13, 22, 7]])
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
        torch.testing.assert_close(loaded(ids).logits, trainer.model.policy(ids).logits, rtol=1e-3, atol=1e-4)
    load_value_model(tmp_path / "value", dtype=torch.float32)  # raises for a folder that is none
    assert "quantization_config" not in (tmp_path / "policy/config.json").read_text()


def test_a_resumed_run_in_4_bits_ends_with_the_weights_of_an_unbroken_one(wide_policy, tmp_path):
    changes = {**QLORA, "roles": "two_adapters", "save_strategy": "steps", "save_steps": 2}
    unbroken = finished(wide_policy, tmp_path, **changes)
    resumed = tiny_trainer(tiny_config(wide_policy, tmp_path, max_steps=4, **changes), trajectories(16))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = dict(unbroken.model.named_parameters())
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, expected[name]), name


def test_the_body_takes_four_bits_and_a_little_per_weight(wide_policy):
    model = load_policy(wide_policy, dtype=torch.float32, quantization=four_bits(torch.float32))
    layers = [p for name, p in model.named_parameters() if "layers" in name and "proj" in name]
    n_weights = 2 * (4 * WIDTH * WIDTH + 3 * WIDTH * 48)  # two layers: q, k, v, o; an MLP of width 48
    assert sum(p.nbytes for p in layers) == n_weights / 2


def test_4_bits_without_adapters_off_are_refused(wide_policy, tmp_path):
    with pytest.raises(ValueError, match="the reference would be another one: set policy_lora_rank and"):
        tiny_config(wide_policy, tmp_path, load_in_4bit=True, policy_lora_rank=4)


def test_engines_that_shard_weights_are_refused(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match="which FSDP cannot shard: take DDP, ZeRO-1 or ZeRO-2"):
            four_bits(torch.float32)
    stage_3 = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # in force as long as it lives
    with pytest.raises(ValueError, match="which DeepSpeed ZeRO-3 cannot shard"):
        four_bits(torch.float32)
    del stage_3
