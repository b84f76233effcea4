"""One vocabulary of words and visual codes, which comes back from disk with the meaning of every id."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.pretrained import load_tokenizer
from posttrain.vision.prompts import all_prompts
from posttrain.vision.visual_text import VisualIds, build_text_tokenizer, completion_text, prompt_text, visual_ids
from posttrain.vision.world import World
from tests.evaluation.tiny_policy import word_tokenizer

WORLD = World()


def test_a_prompt_and_its_completion_are_read_token_by_token() -> None:
    # <pad> 0, <eos> 1, then the 20 words of the grammar from "a" 2, "square" 3, "ring" 4; "red" is the seventh, 8.
    tokenizer = build_text_tokenizer(WORLD, 16)
    assert prompt_text("a red ring") == "a red ring <bov>"
    assert tokenizer("a red ring <bov>")["input_ids"] == [2, 8, 4, 22]
    codes = torch.tensor([3, 0, 15])
    assert completion_text(codes) == "<v3> <v0> <v15>"
    assert tokenizer(completion_text(codes))["input_ids"] == [26, 23, 38]
    assert len(tokenizer) == 23 + 16


def test_a_completion_may_follow_its_prompt_without_a_space() -> None:
    tokenizer = build_text_tokenizer(WORLD, 16)
    joined = prompt_text("a red ring") + completion_text(torch.tensor([3, 0])) + "<eos>"
    assert tokenizer(joined)["input_ids"] == [2, 8, 4, 22, 26, 23, 1]


def test_no_prompt_is_the_unconditional_one() -> None:
    tokenizer = build_text_tokenizer(WORLD, 16)
    assert prompt_text("") == "<bov>"
    assert tokenizer(prompt_text(""))["input_ids"] == [visual_ids(tokenizer).bov]


def test_visual_codes_are_consecutive_ids_after_bov() -> None:
    tokenizer = build_text_tokenizer(WORLD, 300)
    ids = visual_ids(tokenizer)
    assert ids == VisualIds(bov=22, offset=23, n_codes=300)
    assert tokenizer.convert_ids_to_tokens([22, 23, 322]) == ["<bov>", "<v0>", "<v299>"]
    codes = torch.tensor([[0, 5], [299, 17]])
    assert ids.to_tokens(codes).tolist() == [[23, 28], [322, 40]]
    assert torch.equal(ids.to_codes(ids.to_tokens(codes)), codes)


def test_every_prompt_and_code_survives_a_save_and_a_load(tmp_path: Path) -> None:
    tokenizer = build_text_tokenizer(WORLD, 64)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
    assert visual_ids(loaded) == visual_ids(tokenizer)
    completion = completion_text(torch.arange(64))
    for prompt in all_prompts(WORLD)[::10]:
        text = f"{prompt_text(prompt.text)} {completion}"
        ids = loaded(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert loaded.decode(ids) == text


def test_decoding_keeps_visual_tokens_when_special_ones_are_skipped() -> None:
    tokenizer = build_text_tokenizer(WORLD, 16)
    ids = tokenizer("a ring <bov> <v1><eos><pad>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a ring <bov> <v1>"


def test_a_word_outside_the_grammar_is_an_error() -> None:
    tokenizer = build_text_tokenizer(WORLD, 16)
    for text in ("a purple ring", "<v16>"):
        with pytest.raises(Exception, match="UNK"):
            tokenizer(text)


def test_ids_that_are_no_visual_codes_are_refused() -> None:
    ids = visual_ids(build_text_tokenizer(WORLD, 16))
    with pytest.raises(ValueError, match="2 of 4 token ids of visual codes are outside 23 to 38, the first is 1"):
        ids.to_codes(torch.tensor([[23, 1], [39, 38]]))
    with pytest.raises(ValueError, match="1 of 2 visual codes are outside 0 to 15, the first is 16"):
        ids.to_tokens(torch.tensor([0, 16]))


def test_a_tokenizer_without_visual_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no policy over visual tokens"):
        visual_ids(word_tokenizer())


def test_an_empty_codebook_is_refused() -> None:
    with pytest.raises(ValueError, match="codebook_size 0"):
        build_text_tokenizer(WORLD, 0)
