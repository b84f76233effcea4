"""What transformers may print while a model is loaded, and the device it goes to."""

import logging

import torch
from transformers import AutoModelForSequenceClassification

from posttrain.models.loading import device_named
from posttrain.models.value import value_model_from_policy
from tests.models.tiny_models import write_policy


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
