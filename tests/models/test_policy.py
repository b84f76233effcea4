"""Loading policies: dropout really off, and architectures whose logits would be scored wrongly are refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from posttrain.models.policy import frozen_copy, load_policy
from posttrain.models.value import load_value_model, value_model_from_policy
from tests.models.tiny_models import FAMILIES, batch, config_of, write_policy


def outputs(model, *, n: int = 2):
    rows = batch((11,))
    torch.manual_seed(0)  # dropout, if any is left, draws different masks in the two calls
    with torch.no_grad():
        return [model(rows.input_ids, attention_mask=rows.is_token.long()).logits for _ in range(n)]


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_in_training_mode_for_policy_value_and_reference(tmp_path, family):
    folder = write_policy(tmp_path / "policy", family, dropout=0.5)
    undone = AutoModelForCausalLM.from_config(config_of(family, dropout=0.5)).train()
    first, second = outputs(undone)
    assert not torch.equal(first, second)  # the config asks for dropout, and plain transformers applies it

    policy = load_policy(folder, dtype=torch.float32)
    fresh = value_model_from_policy(folder, dtype=torch.float32)
    torch.nn.init.normal_(fresh.score.weight)
    fresh.save_pretrained(tmp_path / "value")
    loaded = load_value_model(tmp_path / "value", dtype=torch.float32)
    for model in (policy, frozen_copy(policy), fresh, loaded):
        (expected,) = outputs(model.eval(), n=1)
        for training in outputs(model.train()):
            assert torch.equal(training, expected)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (Gemma2Config, "final_logit_softcapping=30.0"),
        (CohereConfig, "logit_scale=0.0625"),
        (GraniteConfig, "logits_scaling=8.0"),
    ],
)
def test_architecture_that_transforms_its_logits_is_refused(tmp_path, kind, setting):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    scaling = {"logits_scaling": 8.0} if kind is GraniteConfig else {}
    config = kind(
        vocab_size=37, num_key_value_heads=2, pad_token_id=0, eos_token_id=2, bos_token_id=1, **sizes, **scaling
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"sets {setting}: its logits are not"):
        load_policy(tmp_path, dtype=torch.float32)


def test_scaling_that_does_nothing_is_accepted(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = GraniteConfig(vocab_size=37, num_key_value_heads=2, pad_token_id=0, logits_scaling=1.0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy = load_policy(tmp_path, dtype=torch.float32)
    rows = batch((11,))
    hidden = policy.base_model(rows.input_ids).last_hidden_state
    assert torch.equal(policy.get_output_embeddings()(hidden), policy(rows.input_ids).logits)
