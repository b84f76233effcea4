"""What a path that is no model says, and what transformers may print while a model is loaded."""

import logging

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from posttrain.models.loading import device_named, load_tokenizer, require_model_path
from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model, value_model_from_policy
from tests.models.tiny_models import write_policy


@pytest.mark.parametrize(
    "load",
    [
        load_tokenizer,
        lambda path: load_policy(path, dtype=torch.float32),
        lambda path: load_value_model(path, dtype=torch.float32),
        lambda path: value_model_from_policy(path, dtype=torch.float32),
    ],
    ids=["tokenizer", "policy", "value model", "value model from a policy"],
)
@pytest.mark.parametrize("name", ["runs/oreo/policy", "/nowhere/policy", "../policy"])
def test_a_path_that_is_neither_folder_nor_hub_id_is_named(load, name):
    with pytest.raises(FileNotFoundError, match=f"no model folder at {name} .and '{name}' is no Hub id"):
        load(name)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-Math-1.5B", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_a_hub_id_is_left_to_transformers(name):
    require_model_path(name)


def test_a_zero_head_is_made_without_a_report_and_other_loads_still_have_theirs(tmp_path):
    folder = write_policy(tmp_path / "policy", "llama")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(handler)
    try:
        value_model_from_policy(folder, dtype=torch.float32)
        assert said == []
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    finally:
        logger.removeHandler(handler)
    assert len(said) == 1
    assert "score.weight" in said[0]


def test_auto_is_cuda_where_there_is_one_and_other_names_are_taken_as_they_are():
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_named("cuda:1") == torch.device("cuda", 1)
