"""Trunks that a prefix cache cannot serve are refused with the reason."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, MambaConfig, MistralConfig, PretrainedConfig

from posttrain.models.packing import use_packed_attention
from posttrain.models.prefix_cache import PrefixCache
from tests.models.prefix_rows import hidden_alone, policy
from tests.models.tiny_models import VOCAB

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": VOCAB}
HEADS = {"num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
LONG = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (MistralConfig(sliding_window=8, num_key_value_heads=2, **TINY, **HEADS), "sliding_window of 8"),
        (MambaConfig(**TINY), "recurrent"),
        (BloomConfig(n_head=2, **TINY), "no position_ids"),
        (LlamaConfig(rope_parameters=LONG, **TINY, **HEADS), "rope_type is dynamic"),
    ],
    ids=["mistral", "mamba", "bloom", "dynamic rope"],
)
def test_a_trunk_that_keeps_more_than_keys_and_values_is_refused(config: PretrainedConfig, fault: str):
    trunk = AutoModelForCausalLM.from_config(config).base_model
    with pytest.raises(ValueError, match=f"cannot have a prefix cache: .*{fault}"):
        PrefixCache(trunk, max_tokens=10)


def test_attention_that_takes_no_mask_is_refused_and_that_of_packed_rows_serves():
    model = policy("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="its attention is flash_attention_2, needed one of sdpa, eager"):
        PrefixCache(model.base_model, max_tokens=10)
    model = policy("llama")
    use_packed_attention(model)
    cache = PrefixCache(model.base_model, max_tokens=100)
    for row, found in zip([(3, 4, 5), (3, 4, 6)], cache.last_hidden([(3, 4, 5), (3, 4, 6)]).hidden, strict=True):
        torch.testing.assert_close(found, hidden_alone(model.base_model, row)[-1], rtol=0, atol=1e-5)
