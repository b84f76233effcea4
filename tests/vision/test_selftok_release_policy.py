"""A Llama extended by visual words: old behaviour kept, ids in a row, an ordinary folder."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.vision.selftok_release.policy import VisualWords, extend_llama

N_CODES = 40


def write_base(folder, *, is_tied=False, n_spare=0):
    """A tiny Llama with Llama 3's structure: byte-level BPE, grouped queries, untied embeddings."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + n_spare,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=500_000.0,
        tie_word_embeddings=is_tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def extended(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("extended")
    return folder, extend_llama(base, folder, n_codes=N_CODES, generator=seeded())


def test_extended_folder_loads_as_any_llama_and_has_its_words_in_a_row(extended):
    folder, words = extended
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    # 256 bytes and two special tokens come first.
    assert words == VisualWords(bov=258, eov=259, offset=260, n_codes=40)
    assert VisualWords.of(tokenizer) == words
    assert model.config.vocab_size == len(tokenizer) == 300
    assert tokenizer.convert_ids_to_tokens([258, 259, 260, 299]) == ["<bov>", "<eov>", "<v0>", "<v39>"]


def test_extension_keeps_the_logits_of_old_tokens(base, extended):
    folder, words = extended
    ids = torch.tensor([[5, 17, 200, 63]])
    old, new = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (base, folder))
    assert torch.equal(new[..., : words.bov], old)


@pytest.mark.parametrize("is_tied", [False, True])
def test_new_rows_are_spread_about_the_mean_row(tmp_path, is_tied):
    base = write_base(tmp_path / "base", is_tied=is_tied)
    extend_llama(base, tmp_path / "out", n_codes=1000, generator=seeded())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for embedding in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        old, new = embedding[:258], embedding[258:]
        spread = new - old.mean(dim=0)
        # 1002 x 32 draws of N(0, 0.02²): the standard error of their mean is 0.02 / sqrt(32064) = 1.1e-4, of their
        # standard deviation 0.02 / sqrt(2 · 32064) = 8e-5. Five of each.
        assert spread.mean().abs() < 5.6e-4
        assert (spread.std() - 0.02).abs() < 4e-4
        assert len(new.unique(dim=0)) == 1002


def test_extension_draws_from_its_generator_alone(base, tmp_path):
    rows = []
    for run, seed in enumerate((0, 0, 1)):
        torch.manual_seed(run)
        folder = tmp_path / str(run)
        extend_llama(base, folder, n_codes=4, generator=seeded(seed))
        rows.append(AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight[258:])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_text_of_an_image_is_one_token_a_word_with_or_without_spaces(extended):
    folder, words = extended
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("a ring <bov>").input_ids
    assert prompt == [*tokenizer("a ring").input_ids, words.bov]
    for text in ("<v5> <v39> <eov>", "<v5><v39><eov>", " <v5> <v39> <eov>"):
        assert tokenizer(text).input_ids == [265, 299, 259]
    assert tokenizer.decode([265, 299]) == "<v5><v39>"


def test_images_enter_between_their_marks_and_come_back(extended):
    _, words = extended
    codes = torch.tensor([[0, 39, 7], [1, 1, 2]])
    image = words.image_tokens(codes)
    assert image.tolist() == [[258, 260, 299, 267, 259], [258, 261, 261, 262, 259]]
    assert torch.equal(words.to_codes(image[:, 1:-1]), codes)


def test_ids_outside_the_visual_words_are_refused(extended):
    _, words = extended
    with pytest.raises(ValueError, match="1 of 2 visual codes are outside 0 to 39, the first is 40"):
        words.to_tokens(torch.tensor([0, 40]))
    with pytest.raises(ValueError, match="1 of 2 token ids of visual codes are outside 260 to 299, the first is 259"):
        words.to_codes(torch.tensor([259, 260]))


def test_a_model_that_has_visual_words_already_is_refused(extended, tmp_path):
    with pytest.raises(ValueError, match="was extended before"):
        extend_llama(extended[0], tmp_path, n_codes=N_CODES, generator=seeded())


def test_a_model_with_spare_rows_is_refused(tmp_path):
    base = write_base(tmp_path / "base", n_spare=6)
    with pytest.raises(ValueError, match="258 tokens and 264 rows of embeddings"):
        extend_llama(base, tmp_path / "out", n_codes=4, generator=seeded())


def test_tokenizers_without_an_end_of_images_or_with_gaps_are_refused(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<bov>", "<v0>", "<other>", "<v1>"])
    with pytest.raises(ValueError, match="extend_llama writes a model folder"):
        VisualWords.of(tokenizer)
    tokenizer.add_tokens(["<eov>"])
    with pytest.raises(ValueError, match="<v1> has the id 261, needed 260"):
        VisualWords.of(tokenizer)
