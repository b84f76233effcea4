"""What a path that is no model says, and that ids of the Hub still work."""

import shutil

import huggingface_hub.constants
import pytest
import torch

from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model, value_model_from_policy
from posttrain.pretrained import load_tokenizer
from tests.training.tiny_oreo import write_policy


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the Hub and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


LOADERS = pytest.mark.parametrize(
    "load",
    [
        load_tokenizer,
        lambda path: load_policy(path, dtype=torch.float32),
        lambda path: load_value_model(path, dtype=torch.float32),
        lambda path: value_model_from_policy(path, dtype=torch.float32),
    ],
    ids=["tokenizer", "policy", "value model", "value model from a policy"],
)


@LOADERS
@pytest.mark.parametrize("name", ["runs/oreo/policy", "/nowhere/policy", "../policy"])
def test_a_path_that_is_neither_folder_nor_hub_id_is_named(load, name):
    with pytest.raises(FileNotFoundError, match=f"no model folder at {name}, and '{name}' is no Hub id"):
        load(name)


@LOADERS
@pytest.mark.parametrize("name", ["runs/policy", "policy"])
def test_a_missing_folder_that_could_be_a_hub_id_says_both_and_why(load, name):
    wanted = f"no model folder at {name}, and '{name}' cannot be read from the Hub: We couldn't connect .*\n.* ended"
    with pytest.raises(FileNotFoundError, match=wanted):
        load(name)


@pytest.mark.parametrize("name", ["owner/tiny-1.5B_x", "tiny"])
def test_a_hub_id_is_read_from_the_cache(name, hub_cache, tmp_path):
    repository = hub_cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("c0ffee")
    write_policy(repository / "snapshots/c0ffee")
    assert load_policy(name, dtype=torch.float32).config.vocab_size == len(load_tokenizer(name)) == 40


def test_a_tokenizer_without_a_model_is_read(tmp_path):
    folder = write_policy(tmp_path / "model")
    (tmp_path / "bare").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / file, tmp_path / "bare")
    assert len(load_tokenizer(tmp_path / "bare")) == 40
